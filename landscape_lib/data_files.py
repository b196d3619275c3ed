"""The files of the data sets: what is known about each; torchvision and PIL read them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape_lib import runtime

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}

Images = tuple[Callable[[Tensor], Tensor], Tensor, str]
"""A function from rows to (N, C, H, W) uint8 pixels; all (N,) int64 labels; the source in words."""


@dataclass(frozen=True)
class Facts:
    """What is known about a data set before any file is read."""

    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # (C, H, W) of an image
    white: int  # the largest pixel value
    counts: dict[str, int]  # images in each split
    mean: tuple[float, ...]  # of each channel of the train split, for pixels / white
    std: tuple[float, ...]  # likewise, the population's
    torchvision: str = ""  # the class that reads its own files
    files: str = ""  # their format
    folders: tuple[str, ...] = ()  # where they lie (the first), where image files may lie
    package: str | None = None  # of the system


FACTS = {
    "digits": Facts(
        "Digits",
        tuple("0123456789"),
        shape=(1, 8, 8),
        white=16,
        counts={"train": 1_437, "test": 360},
        mean=(0.3058,),
        std=(0.3762,),
    ),
    "fashion_mnist": Facts(
        "Fashion-MNIST",
        tuple(
            "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
        ),
        shape=(1, 28, 28),
        white=255,
        counts={"train": 60_000, "test": 10_000},
        mean=(0.2860,),
        std=(0.3530,),
        torchvision="FashionMNIST",
        files="idx files",
        folders=("FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "FashionMNIST"),
        package="Debian dataset-fashion-mnist",
    ),
    "cifar10": Facts(
        "CIFAR-10",
        tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        shape=(3, 32, 32),
        white=255,
        counts={"train": 50_000, "test": 10_000},
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        torchvision="CIFAR10",
        files="Python batch files",
        folders=("cifar-10-batches-py", "cifar10", "CIFAR10", "cifar-10"),
    ),
}


def read_digits(split: str) -> Images:
    """Read scikit-learn's handwritten digits (a copy of the UCI optical digits test set).

    The split is fixed and stratified: sorted by class, every fifth image is a test image.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    is_test = np.zeros(len(bunch.target), dtype=bool)
    is_test[np.argsort(bunch.target, kind="stable")[::5]] = True
    chosen = is_test == (split == "test")
    pixels = torch.from_numpy(bunch.images[chosen].astype(np.uint8)[:, None])
    labels = torch.from_numpy(bunch.target[chosen].astype(np.int64))
    return pixels.__getitem__, labels, "scikit-learn digits"


def read_folder(facts: Facts, folder: Path, split: str, source: str | None = None) -> Images | None:
    """Read a split from torchvision's files, Debian's, or image files; ``None`` if there are none.

    ``source`` is what to quote for other than image files.

    Raises:
        ImportError: there are files that only torchvision reads, and it cannot be imported.
        ValueError: a file is missing from an otherwise present layout, truncated or corrupt.
    """
    own, packed = folder / facts.folders[0], sorted((folder / facts.folders[1]).glob("*-ubyte.gz"))
    if own.is_dir() or packed:
        place = own if own.is_dir() else packed[0].parent
        try:
            with tempfile.TemporaryDirectory() as temporary:
                if not own.is_dir():  # Debian's: torchvision reads unpacked files only
                    folder = Path(temporary)
                    (folder / facts.folders[0]).mkdir(parents=True)
                    for path in packed:
                        unpack = _torchvision_datasets().utils.extract_archive
                        unpack(path, folder / facts.folders[0])
                source = source or f"{facts.title}, {facts.files}"
                return read_torchvision(facts, folder, split, source)
        except ImportError:
            raise
        except Exception as error:  # a bare assertion and much else
            raise ValueError(
                f"{place}: expected the files of torchvision's {facts.torchvision}, found them "
                f"missing, truncated or corrupt: {type(error).__name__}: {error}"
            ) from error
    bases = (folder, *(folder / name for name in facts.folders))
    trees = (_read_tree(base / split, facts) for base in bases)
    return next((tree for tree in trees if tree is not None), None)


def read_torchvision(
    facts: Facts, folder: Path, split: str, source: str, download: bool = False
) -> Images:
    """Read torchvision's files in ``folder``, or let torchvision download them there first.

    Raises:
        ImportError: torchvision cannot be imported.
        Exception: whatever torchvision raises if it finds no files, or damaged ones.
    """
    reader = getattr(_torchvision_datasets(), facts.torchvision)
    found = reader(folder, train=split == "train", download=download)
    pixels, labels = torch.as_tensor(found.data), torch.as_tensor(found.targets)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if pixels.shape != (len(labels), *facts.shape) or not len(labels):
        raise ValueError(f"images {tuple(pixels.shape)} and labels {tuple(labels.shape)}")
    if labels.dtype != torch.int64 or not 0 <= labels.min() <= labels.max() < len(facts.classes):
        raise ValueError(f"{labels.dtype} labels from {labels.min()} to {labels.max()}")
    return pixels.contiguous().__getitem__, labels, source


def _torchvision_datasets() -> Any:
    """Return ``torchvision.datasets``, imported only now: the library runs without it."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ImportError(
            f"torchvision: needed to read or download this data set, but it cannot be imported: "
            f'{error} (pip install torchvision, or use load("digits", ...))'
        ) from error
    return datasets


def _read_tree(folder: Path, facts: Facts) -> Images | None:
    """Read image files in one folder per class, whatever the case and signs of their names.

    Not by torchvision's ``ImageFolder``, which follows links: with one link in a circle it reads
    each image forty times, with two it never returns.
    """
    wanted = [_plain(name) for name in facts.classes]
    present = [path for path in _visible(folder) if path.is_dir()]
    names = [_plain(path.name) for path in present]
    if not names or not set(names) <= set(wanted):
        return None  # another data set's
    if sorted(names) != sorted(wanted):
        raise ValueError(
            f"{folder}: expected one folder for each of {', '.join(facts.classes)}, "
            f"found {', '.join(path.name for path in present)}"
        )
    tree = []
    for label, name in enumerate(wanted):
        inside = present[names.index(name)]
        files = [path for path in _visible(inside) if path.suffix.lower() in SUFFIXES]
        if not files:
            raise ValueError(f"{inside}: expected {', '.join(SUFFIXES)} files, found none")
        tree += [(path, label) for path in files]
    # In a fixed shuffled order: a sorted tree would begin with one class only.
    order = torch.randperm(len(tree), generator=torch.Generator().manual_seed(0)).tolist()
    paths, labels = [tree[row][0] for row in order], torch.tensor([tree[row][1] for row in order])
    formats = " and ".join(sorted({SUFFIXES[path.suffix.lower()] for path in paths}))
    source = f"{facts.title}, ImageFolder tree of {formats} files"
    return partial(_decode, facts, paths), labels, source


def _visible(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if not path.name.startswith(".")]


def _plain(name: str) -> str:
    """Keep letters and digits only, so that a folder can stand for the class ``T-shirt/top``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _decode(facts: Facts, paths: list[Path], rows: Tensor) -> Tensor:
    """Decode the images wanted, with a progress bar if that takes long."""
    channels, height, width = facts.shape
    pixels = np.empty((len(rows), height, width, channels), np.uint8)
    bar = runtime.progress_bar(iterable=rows.tolist(), desc=f"decoding {facts.title}", unit="image")
    for place, row in enumerate(bar):
        picture = open_picture(paths[row], (width, height))
        picture = picture.convert("L" if channels == 1 else "RGB")
        pixels[place] = np.asarray(picture).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def open_picture(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Image:
    """Decode a PNG or JPEG file, and no other: some formats start other programs.

    Args:
        path: of the file.
        size: width and height that it must have.

    Returns:
        The picture, with at most 8 bits a channel (16-bit grey is scaled).

    Raises:
        TypeError: ``path`` is no path.
        FileNotFoundError: there is no such file.
        ValueError: the file is of another format, truncated, corrupt, too large or not ``size``.
    """
    from PIL import Image

    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected the path of a PNG or JPEG file, got {path!r}")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if size is not None and picture.size != size:
                found, expected = (" x ".join(map(str, pair)) for pair in (picture.size, size))
                raise ValueError(f"expected {expected} pixels, found {found}")
            picture.load()
    except FileNotFoundError:
        raise
    except Exception as error:  # damage shows in many ways, among them SyntaxError
        raise ValueError(
            f"path: expected a picture, a whole PNG or JPEG file, got {os.fspath(path)!r}: {error}"
        ) from error
    if picture.mode.startswith("I"):  # which PIL would clip at 255
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    return picture
