"""Data sets as whole tensors on the device: digits, Fashion-MNIST and CIFAR-10.

The data sets here are small enough to live on the device as one tensor, which makes a batch an
index operation. :func:`load` looks for the files in ``$LANDSCAPE_DATA``, on the system, in the
user's cache, and at last asks torchvision to download them; ``data_files`` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape_lib import data_files, runtime
from landscape_lib.data_files import FACTS, Facts, Images

SYSTEM_FOLDER = Path("/usr/share/datasets")
"""Where Debian's packages of data sets keep their files."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels as two tensors on one device, with what is known about them.

    Attributes:
        x: (N, C, H, W) images, each channel normalised to ``(pixel - mean) / std``.
        y: (N,) int64 class numbers, indices into ``classes``.
        name: ``"digits"``, ``"fashion_mnist"`` or ``"cifar10"``.
        split: ``"train"`` or ``"test"``.
        classes: the class names.
        mean: of each channel over the full train split, for pixels in [0, 1].
        std: likewise.
        source: in a few words, where the images came from: the provenance of results quotes it.
    """

    x: Tensor
    y: Tensor
    name: str
    split: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                "x, y: expected images (N, C, H, W) and labels (N,), "
                f"got {tuple(self.x.shape)} and {tuple(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.y)

    def batches(
        self, size: int, shuffle: bool = False, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return an iterator over batches ``(x, y)`` that together hold every image once.

        Args:
            size: images per batch; the last batch may be shorter.
            shuffle: draw a new order, with one call of ``torch.randperm``, when this is called.
            generator: the CPU generator the order is drawn from; the global one is never used.

        Raises:
            ValueError: ``size`` below 1; ``shuffle`` without a CPU generator.
        """
        if size < 1:
            raise ValueError(f"size: expected at least 1 image per batch, got {size}")
        if not shuffle:
            return zip(self.x.split(size), self.y.split(size), strict=True)
        if generator is None or generator.device.type != "cpu":
            given = "none" if generator is None else f"one on {generator.device}"
            raise ValueError(f"generator: shuffle=True needs a CPU torch.Generator, got {given}")
        order = torch.randperm(len(self), generator=generator).to(self.y.device)
        return ((self.x[chosen], self.y[chosen]) for chosen in order.split(size))

    def subset(self, samples: int, seed: int = 0) -> Dataset:
        """Return a fixed random subset, drawn without replacement.

        Of two subsets with the same seed, the smaller one is the beginning of the larger.

        Args:
            samples: number of images, at most ``len(self)``.
            seed: of the subset's own generator; the global one is not touched.

        Raises:
            ValueError: ``samples`` below 1 or more than there are.
        """
        chosen = _choose(samples, len(self), seed).to(self.y.device)
        return replace(self, x=self.x[chosen], y=self.y[chosen])

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Dataset:
        """Return the data on another device or with images of another dtype; labels stay int64.

        Raises:
            ValueError: ``device`` is not available here; ``dtype`` is not a floating-point type.
        """
        target = self.y.device if device is None else runtime.pick_device(device)
        return replace(self, x=self.x.to(target, _floating(dtype, self.x)), y=self.y.to(target))

    def images(self) -> Tensor:
        """Return the pictures for plotting: (N, H, W), or (N, H, W, 3) in colour, in [0, 1].

        They are float32 on the CPU, with the normalisation undone.
        """
        x = self.x.detach().to("cpu", torch.float32)
        pixels = (x * _per_channel(self.std, x) + _per_channel(self.mean, x)).clamp_(0, 1)
        return pixels.squeeze(1) if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1)


def load(
    name: str,
    split: str,
    *,
    samples: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set as two tensors.

    Digits come with scikit-learn. The files of the others are searched for in this order:

    1. the folder ``$LANDSCAPE_DATA``: in torchvision's layout (``FashionMNIST/raw``,
       ``cifar-10-batches-py``), or image files in ``train/<class>/`` and ``test/<class>/``,
       there or one folder further down (``cifar10/train/<class>/``);
    2. a system package: Debian's ``dataset-fashion-mnist``;
    3. the user's cache, ``~/.cache/landscape_lib`` (or below ``$XDG_CACHE_HOME``), into which
       torchvision downloads what is not there yet.

    Args:
        name: ``"digits"`` (1,437 train and 360 test images, 8x8), ``"fashion_mnist"`` (60,000 and
            10,000, 28x28) or ``"cifar10"`` (50,000 and 10,000, 32x32 in colour).
        split: ``"train"`` or ``"test"``.
        samples: take a fixed random subset of so many images (see :meth:`Dataset.subset`).
        device: where the tensors live; by default the best device present.
        dtype: of the images; by default torch's default dtype.
        seed: which subset.

    Raises:
        FileNotFoundError: the data set is nowhere; the message names every way to get it.
        ImportError: there are files that only torchvision reads, and it cannot be imported.
        ValueError: an argument is not one of the above, or a file is truncated or corrupt.
    """
    if not isinstance(name, str) or name not in FACTS:
        raise ValueError(f"name: expected one of {', '.join(map(repr, FACTS))}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if samples is not None:
        _check_samples(samples)
    target = runtime.pick_device(device)
    kind = _floating(dtype, torch.empty(0))
    facts = FACTS[name]

    with torch.device("cpu"):  # whatever the caller's default device
        found = data_files.read_digits(split) if name == "digits" else _find(facts, name, split)
        pixels, labels, source = found
        count, whole = len(labels), facts.counts[split]
        if count != whole:
            source += f" ({count:,} of {whole:,} images)"
        rows = torch.arange(count) if samples is None else _choose(samples, count, seed)
        raw, labels = pixels(rows), labels[rows]
    # uint8 travels to the device; low-precision types are computed in float32 and rounded once.
    x = raw.to(target).to(torch.promote_types(kind, torch.float32))
    x.div_(facts.white).sub_(_per_channel(facts.mean, x)).div_(_per_channel(facts.std, x))
    return Dataset(
        x=x.to(kind),
        y=labels.to(target),
        name=name,
        split=split,
        classes=facts.classes,
        mean=facts.mean,
        std=facts.std,
        source=source,
    )


def cache_folder() -> Path:
    """Return this library's folder in the user's cache; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "landscape_lib"


def _find(facts: Facts, name: str, split: str) -> Images:
    """Read a data set from the first place that has it."""
    named = os.environ.get("LANDSCAPE_DATA")
    places = [(Path(named).expanduser(), None)] if named else []
    for folder, source in (*places, (SYSTEM_FOLDER, facts.package)):
        found = data_files.read_folder(facts, folder, split, source)
        if found is not None:
            return found
    cache = cache_folder()
    try:
        return data_files.read_torchvision(
            facts, cache, split, "torchvision download", download=True
        )
    except Exception as error:  # offline, no torchvision, no space, damaged
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        there = f"{named}, which does not hold it" if named else "not set"
        raise FileNotFoundError(
            f"{facts.title} ({split}) was not found. Ways to get it:\n"
            f"- set LANDSCAPE_DATA (now: {there}) to a folder that holds {facts.folders[0]}/ as "
            f"torchvision lays it out, or image files in {split}/<class>/*.jpg or *.png, or in "
            f"{name}/{split}/<class>/;\n"
            f"- install a system package: {facts.package or 'none is known'} "
            f"(looked in {SYSTEM_FOLDER});\n"
            f"- put {facts.folders[0]}/ into the cache, {cache}, or be online, and torchvision "
            f"downloads it there (tried just now: {reason}).\n"
            'Or use load("digits", ...), which needs no files.'
        ) from error


def _check_samples(samples: Any, most: int | None = None) -> None:
    whole = isinstance(samples, Integral) and not isinstance(samples, bool)
    if not whole or samples < 1 or (most is not None and samples > most):
        bounds = "at least 1" if most is None else f"1 to {most:,} (all there are)"
        raise ValueError(f"samples: expected {bounds}, got {samples!r}")


def _choose(samples: int, available: int, seed: int) -> Tensor:
    _check_samples(samples, available)
    return torch.randperm(available, generator=runtime.generator(seed), device="cpu")[:samples]


def _floating(dtype: Any, like: Tensor) -> torch.dtype:
    if dtype is None:
        return like.dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point type, got {dtype!r} (torch.float32?)")
    return dtype


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]
