"""The files of the data sets: what is known about each, and how each format is read.

A reader returns a data set completely or raises a ``ValueError`` that names the damaged file,
what was expected of it and what was found. Nothing is half-read.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape_lib import image_tree


@dataclass(frozen=True)
class Facts:
    """What is known about a data set before any file is read.

    Attributes:
        title: its name in prose.
        classes: class names in the order of the labels.
        shape: (C, H, W) of an image.
        white: the largest pixel value; pixels / white lie in [0, 1].
        counts: images in the full train and test split.
        mean: of each channel of the train split, for pixels in [0, 1].
        std: likewise, the population's standard deviation.
        files: the format of its own files.
        folders: in which these or image files may lie; torchvision's is the first.
        package: the system package that holds it.
    """

    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    white: int
    counts: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: str = ""
    folders: tuple[str, ...] = ()
    package: str | None = None


FACTS = {
    "digits": Facts(
        title="Digits",
        classes=tuple("0123456789"),
        shape=(1, 8, 8),
        white=16,
        counts={"train": 1_437, "test": 360},
        mean=(0.3058,),
        std=(0.3762,),
    ),
    "fashion_mnist": Facts(
        title="Fashion-MNIST",
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        shape=(1, 28, 28),
        white=255,
        counts={"train": 60_000, "test": 10_000},
        mean=(0.2860,),
        std=(0.3530,),
        files="idx files",
        folders=("FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "FashionMNIST"),
        package="Debian dataset-fashion-mnist",
    ),
    "cifar10": Facts(
        title="CIFAR-10",
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        shape=(3, 32, 32),
        white=255,
        counts={"train": 50_000, "test": 10_000},
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        files="Python batch files",
        folders=("cifar-10-batches-py", "cifar10", "CIFAR10", "cifar-10"),
    ),
}


@dataclass(frozen=True)
class Images:
    """A data set as read: (N, C, H, W) uint8 ``pixels``, (N,) int64 ``labels``, their source."""

    pixels: Tensor
    labels: Tensor
    source: str


def read_digits(split: str) -> Images:
    """Read scikit-learn's handwritten digits (a copy of the UCI optical digits test set).

    The split is fixed and stratified: sorted by class, every fifth image is a test image.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    is_test = np.zeros(len(bunch.target), dtype=bool)
    is_test[np.argsort(bunch.target, kind="stable")[::5]] = True
    chosen = is_test if split == "test" else ~is_test
    pixels = bunch.images[chosen].astype(np.uint8)[:, None]
    labels = bunch.target[chosen].astype(np.int64)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), "scikit-learn digits")


def read_folder(
    facts: Facts, folder: Path, split: str, *, cache: Path, origin: str | None = None
) -> Images | None:
    """Read a split in any layout that ``folder`` offers: torchvision's files or an image tree.

    Args:
        facts: of the data set.
        folder: the root in which the layouts are looked for.
        split: ``"train"`` or ``"test"``.
        cache: folder for the decoded copy of an image tree.
        origin: the source to quote when it is torchvision's files that are found.

    Returns:
        The images, or ``None`` where the folder does not hold this data set.

    Raises:
        ValueError: a file is missing from an otherwise present layout, truncated or corrupt.
    """
    read = {"idx files": _read_idx_pair, "Python batch files": _read_batches}[facts.files]
    for name in facts.folders:
        pair = read(folder / name, split, facts)
        if pair is not None:
            return _images(facts, split, *pair, origin or f"{facts.title}, {facts.files}")
    for base in (folder, *(folder / name for name in facts.folders)):
        tree = image_tree.find(base / split, facts.classes)
        if tree is not None:
            pixels, labels = image_tree.decode(tree, facts.shape, facts.title, cache / "decoded")
            source = f"{facts.title}, ImageFolder tree of {image_tree.formats(tree)} files"
            return _images(facts, split, pixels, labels, source)
    return None


def _images(facts: Facts, split: str, pixels: Tensor, labels: Tensor, source: str) -> Images:
    """Add to the source how many images there are, where they are not all."""
    if len(labels) != facts.counts[split]:
        source += f" ({len(labels):,} of {facts.counts[split]:,} images)"
    return Images(pixels, labels, source)


def _damaged(path: Path, expected: object, found: object) -> ValueError:
    return ValueError(f"{path}: truncated or corrupt: expected {expected}, found {found}")


def _all_or_none(paths: list[Path | None], names: list[str], folder: Path) -> list[Path] | None:
    present = [path for path in paths if path is not None]
    if present and len(present) < len(paths):
        lacking = [name for name, path in zip(names, paths, strict=True) if path is None]
        raise ValueError(f"{folder}: incomplete: expected also {', '.join(lacking)}, found none")
    return present or None


# --- idx files (MNIST's format) -------------------------------------------------------------


def _read_idx_pair(folder: Path, split: str, facts: Facts) -> tuple[Tensor, Tensor] | None:
    prefix = "train" if split == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    choices = [[folder / name, folder / f"{name}.gz"] for name in names]
    files = [next((path for path in both if path.is_file()), None) for both in choices]
    paths = _all_or_none(files, names, folder)
    if paths is None:
        return None
    images, labels = (_read_idx(path) for path in paths)
    if images.shape[1:] != facts.shape[1:]:
        raise _damaged(paths[0], f"(N, {facts.shape[1]}, {facts.shape[2]}) values", images.shape)
    if labels.shape != images.shape[:1]:
        raise _damaged(paths[1], f"{len(images):,} labels, one per image", labels.shape)
    _check_labels(labels, facts, paths[1])
    return torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64))


def _read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes: 0, 0, type 8, dimensions; big-endian sizes; values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(path, "a complete gzip file", error) from error
    dimensions = content[3] if len(content) > 3 else 0
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * dimensions:
        raise _damaged(path, "an idx header of type unsigned byte", content[:4] or "no content")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    values = len(content) - 4 - 4 * dimensions
    if values != np.prod(shape, dtype=np.int64):
        raise _damaged(path, f"{' x '.join(map(str, shape))} values", f"{values:,}")
    # A copy, because torch wants memory it may write to.
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def _check_labels(labels: np.ndarray, facts: Facts, path: Path) -> None:
    if labels.size == 0 or labels.min() < 0 or labels.max() >= len(facts.classes):
        found = f"{labels.min()} to {labels.max()}" if labels.size else "none"
        raise _damaged(path, f"labels 0 to {len(facts.classes) - 1}", found)


# --- CIFAR-10's own files: pickled dictionaries ---------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays inside plain containers and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "_frombuffer", "ndarray", "dtype", "encode"}
        if module.split(".")[0] in ("numpy", "_codecs") and name in allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a reference to {module}.{name}")


def _read_batches(folder: Path, split: str, facts: Facts) -> tuple[Tensor, Tensor] | None:
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    files = [folder / name for name in names]
    paths = _all_or_none([f if f.is_file() else None for f in files], names, folder)
    if paths is None:
        return None
    pixels, labels = zip(*(_read_batch(path, facts) for path in paths), strict=True)
    images = np.concatenate(pixels).reshape(-1, *facts.shape)
    return torch.from_numpy(images), torch.from_numpy(np.concatenate(labels))


def _read_batch(path: Path, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    values = int(np.prod(facts.shape))
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
        pixels, labels = content["data"], np.asarray(content["labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle can raise almost anything
        found = f"{type(error).__name__}: {error}"
        raise _damaged(path, "a pickled dictionary with data and labels", found) from error
    shape = (len(labels), values)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        found = f"{getattr(pixels, 'dtype', type(pixels))} {getattr(pixels, 'shape', '')}"
        raise _damaged(
            path, f"one row of {values:,} bytes for each of {len(labels):,} labels", found
        )
    _check_labels(labels, facts, path)
    return pixels, labels
