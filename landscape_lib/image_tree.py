"""Image files in one folder per class (torchvision's ``ImageFolder``), decoded once to a tensor."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


def find(folder: Path, classes: Sequence[str]) -> list[list[Path]] | None:
    """List the image files of each class in ``folder/<class>/``.

    Args:
        folder: of one split, for example ``cifar10/train``.
        classes: class names; upper case, blanks and signs do not matter in the folders' names.

    Returns:
        For each class its files in the order of their names; ``None`` where there are no such
        folders or also others, so that the tree is another data set's.

    Raises:
        ValueError: only some of the class folders are there, or one holds no image.
    """
    wanted = [_plain(name) for name in classes]
    present = {_plain(path.name): path for path in _visible(folder) if path.is_dir()}
    if not present or not present.keys() <= set(wanted):
        return None
    lacking = [f"{name}/" for name in classes if _plain(name) not in present]
    if lacking:
        raise ValueError(f"{folder}: incomplete: expected also {', '.join(lacking)}, found none")
    files = [
        sorted(path for path in _visible(present[name]) if path.suffix.lower() in SUFFIXES)
        for name in wanted
    ]
    for name, inside in zip(wanted, files, strict=True):
        if not inside:
            expected = ", ".join(SUFFIXES)
            raise ValueError(f"{present[name]}: incomplete: expected {expected} files, found none")
    return files


def formats(files: list[list[Path]]) -> str:
    """Name the formats of a tree: ``"JPEG"``, ``"PNG"`` or ``"JPEG and PNG"``."""
    found = {SUFFIXES[path.suffix.lower()] for inside in files for path in inside}
    return " and ".join(sorted(found))


def decode(
    files: list[list[Path]], shape: tuple[int, int, int], title: str, cache: Path
) -> tuple[Tensor, Tensor]:
    """Decode a tree, or read the tensor that is left in ``cache`` from the first time.

    Args:
        files: as from :func:`find`.
        shape: (C, H, W) that every image must have.
        title: of the data set, for the progress bar.
        cache: folder of decoded trees. The file's name is a digest of the names, sizes and times
            of all files in the tree, so no other tree is mistaken for this one.

    Returns:
        (N, C, H, W) uint8 pixels and (N,) int64 labels, in a fixed shuffled order, since the first
        thousand images of a sorted tree would all show the same class.

    Raises:
        ValueError: a file is truncated, no image, or of another size.
    """
    paths = [path for inside in files for path in inside]
    labels = torch.tensor([label for label, inside in enumerate(files) for _ in inside])
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    stored = cache / f"{_plain(title)}-{_key(paths)}.pt"
    pixels = _read(stored, (len(paths), *shape))
    if pixels is None:
        pixels = torch.empty(len(paths), *shape, dtype=torch.uint8)
        for row, picture in enumerate(_pictures(paths, shape, title)):
            pixels[row] = torch.from_numpy(picture)
        _write(stored, pixels)
    return pixels[order], labels[order]


def _visible(folder: Path) -> list[Path]:
    inside = folder.iterdir() if folder.is_dir() else iter(())
    return [path for path in inside if not path.name.startswith(".")]


def _plain(name: str) -> str:
    """Keep letters and digits only, so that a folder can stand for the class ``T-shirt/top``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _key(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        line = f"{path.parent.name}/{path.name} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _read(stored: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Read a decoded tree; a damaged one is reported and decoded again."""
    if not stored.is_file():
        return None
    try:
        pixels: Tensor = torch.load(stored, weights_only=True)
        if pixels.dtype == torch.uint8 and pixels.shape == shape:
            return pixels
        problem = f"{pixels.dtype} {tuple(pixels.shape)}"
    except Exception as error:  # torch.load reports damage in many ways
        problem = f"{type(error).__name__}: {error}"
    warnings.warn(f"{stored}: damaged, decoding the images again: {problem}", stacklevel=2)
    return None


def _write(stored: Path, pixels: Tensor) -> None:
    """Keep a decoded tree; the file appears complete or not at all."""
    part = stored.with_suffix(f".{os.getpid()}.part")
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        torch.save(pixels, part)
        os.replace(part, stored)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"{stored}: could not keep the decoded images: {error}", stacklevel=2)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _pictures(paths: list[Path], shape: tuple[int, int, int], title: str) -> Iterator[np.ndarray]:
    """Decode image files to (C, H, W) arrays of bytes, with a progress bar."""
    from PIL import Image
    from tqdm.auto import tqdm

    channels, height, width = shape
    for path in tqdm(paths, desc=f"decoding {title}", unit="image"):
        try:
            with Image.open(path) as image:
                picture = np.array(image.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{path}: truncated or corrupt: expected an image file, found {error}"
            ) from error
        if picture.shape[:2] != (height, width):
            found = " x ".join(map(str, picture.shape[:2]))
            raise ValueError(f"{path}: expected {height} x {width} pixels, found {found}")
        yield picture.reshape((*shape[1:], channels)).transpose(2, 0, 1)
