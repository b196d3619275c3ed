"""Data for an evaluation: any data set or iterable, as a list of batches that can be re-read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from landscape_lib.evaluation.nested import (
    cloned,
    concatenated,
    leaves,
    map_tensors,
    tensors_in,
)
from landscape_lib.evaluation.trials import output_of, same_values
from landscape_lib.runtime import generator

FIRST_STAGE = 256


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of ``size`` samples; both may be nested (dicts, tuples) of tensors.

    ``weights``, shape (size,), say what each sample weighs in the loss, where that is not 1.
    """

    x: Any
    y: Any
    size: int
    weights: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """Samples that are measured together, after one forward pass or several.

    Attributes:
        passes: inputs of each forward pass.
        y: targets of all of them.
        size: number of samples.
        weights: of the samples in the loss, see :class:`Batch`.
        reference: what was measured on the same samples at a point to compare with, shape
            (measures, size).
    """

    passes: tuple[Any, ...]
    y: Any
    size: int
    weights: Tensor | None = None
    reference: Tensor | None = None


def is_whole(data: Any) -> bool:
    """Say whether data come whole, as ``x`` and ``y``, so that we make the batches."""
    return hasattr(data, "x") and hasattr(data, "y")


def read_batches(
    data: Any, samples: int | None, batch_size: int, seed: int
) -> tuple[list[Batch], int]:
    """Return the batches of the data, or of a random subset, and the number of all samples."""
    if is_whole(data):
        total = _common_length(data.x, data.y)
        if samples is None:
            return split(Batch(data.x, data.y, total), batch_size), total
        return _chosen(data, _order(total, samples, seed).sort().values, batch_size), total
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data: expected something with x and y, or an iterable of (x, y) batches, "
            f"got {type(data).__name__}"
            + (" (put a DataLoader around it)" if hasattr(data, "__getitem__") else "")
        )
    batches = []
    for item in data:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise TypeError(
                f"data: expected batches (x, y), got {type(item).__name__}"
                + (f" of {len(item)}" if isinstance(item, (tuple, list)) else "")
                + "; several inputs go into one x, a tuple or a dictionary"
            )
        batches.append(Batch(item[0], item[1], _common_length(item[0], item[1])))
    if not batches:
        raise ValueError("data: has no batches (an iterator that was used up before?)")
    if samples is not None:
        raise ValueError("samples: a subset needs data with x and y, not an iterable of batches")
    return batches, sum(batch.size for batch in batches)


def read_stages(
    data: Any, samples: int | None, tolerance: float | None, batch_size: int, seed: int
) -> tuple[list[list[Batch]], int]:
    """Return one stage, or with a tolerance 256 random samples and then twice as many."""
    if tolerance is None:
        batches, total = read_batches(data, samples, batch_size, seed)
        return [batches], total
    if not is_whole(data):
        raise ValueError("tolerance: needs data with x and y, not an iterable of batches")
    total = _common_length(data.x, data.y)
    order = _order(total, samples, seed)
    ends = [min(FIRST_STAGE, len(order))]
    while ends[-1] < len(order):
        ends.append(min(2 * ends[-1], len(order)))
    parts = (order[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return [_chosen(data, part, batch_size) for part in parts], total


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Raise a ``ValueError`` unless ``value`` is a whole number from 1 to ``most``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        bounds = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value!r}")


def move(
    batch: Batch, device: torch.device, dtype: torch.dtype | None, channels_last: bool = False
) -> Batch:
    """Return the batch on a device, its inputs in ``dtype``, targets as wide as what measures."""

    def move_input(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, dtype if tensor.is_floating_point() else None)
        if channels_last and tensor.dim() == 4:
            # contiguous() leaves images of one channel as they are, and convolutions then do not
            # see that they are channels-last.
            empty = torch.empty_like(tensor, memory_format=torch.channels_last)
            return empty.copy_(tensor)
        return tensor

    def move_target(tensor: Tensor) -> Tensor:
        wide = None
        if dtype is not None and tensor.is_floating_point():
            wide = torch.promote_types(tensor.dtype, torch.promote_types(dtype, torch.float32))
        return tensor.to(device, wide)

    return replace(batch, x=map_tensors(move_input, batch.x), y=map_tensors(move_target, batch.y))


def split(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into batches of ``size`` samples."""

    def part(start: int) -> Batch:
        cut = lambda t: t[start : start + size] if is_batch(t) else t  # noqa: E731
        x, y = (map_tensors(cut, side) for side in (batch.x, batch.y))
        return Batch(x, y, min(size, batch.size - start))

    return [part(start) for start in range(0, batch.size, size)]


def first_batches(batches: list[Batch], samples: int) -> list[Batch]:
    """Return batches until they hold so many samples; the last one is cut."""
    chosen: list[Batch] = []
    for batch in batches:
        left = samples - sum(b.size for b in chosen)
        if left > 0:
            chosen += split(batch, left)[:1]
    return chosen


def first_samples(x: Any) -> Any:
    """Return at most two samples of nested inputs."""
    return map_tensors(lambda t: t[:2] if is_batch(t) else t, x)


def samples_in(x: Any) -> int:
    """Return the number of samples of nested inputs, 1 where no tensor tells."""
    return next((len(leaf) for leaf in tensors_in(x) if is_batch(leaf)), 1)


def is_batch(leaf: Any) -> bool:
    """Say whether a leaf of nested data holds one entry per sample."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def group(batches: list[Batch], most: int) -> list[Group]:
    """Gather batches, up to ``most`` samples together, if their targets are nothing but tensors.

    Measuring costs some twenty small operations, as much as a forward pass of few samples.
    """
    held = [(leaf, batch.size) for batch in batches for leaf in leaves(batch.y)]
    if not all(isinstance(leaf, Tensor) and leaf.shape[:1] == (n,) for leaf, n in held):
        most = 0
    groups: list[list[Batch]] = []
    for batch in batches:
        if groups and sum(b.size for b in groups[-1]) + batch.size <= most:
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return [_joined(found) for found in groups]


def _joined(batches: list[Batch]) -> Group:
    passes, size = tuple(b.x for b in batches), sum(b.size for b in batches)
    if len(batches) == 1:
        return Group(passes, batches[0].y, size, batches[0].weights)
    weights = [b.weights for b in batches if b.weights is not None]
    return Group(
        passes, concatenated([b.y for b in batches]), size, torch.cat(weights) if weights else None
    )


def own(group: Group) -> Group:
    """Return the group with tensors that share memory with no other."""
    return replace(group, passes=cloned(group.passes), y=cloned(group.y))


def channels_last_pays(device: torch.device, dtype: torch.dtype, method: str = "loop") -> bool:
    """Say whether convolutions are faster on images stored channels-last: measured."""
    return device.type == "cpu" or (dtype.itemsize == 2 and method == "loop")


def reads_channels_last(model: nn.Module, x: Any, expected: Any = None) -> bool:
    """Say whether a model gives the same on channels-last images: one that takes views may not."""
    tensors = tensors_in(x)
    if not any(tensor.dim() == 4 for tensor in tensors):
        return False
    few = Batch(first_samples(x), None, 1)
    try:
        last = move(few, tensors[0].device, None, channels_last=True).x
        output = output_of(model, last)
    except Exception:
        return False
    return expected is None or same_values(expected, output)


def _order(total: int, samples: int | None, seed: int) -> Tensor:
    if samples is not None:
        check_count("samples", samples, total)
    return torch.randperm(total, generator=generator(seed), device="cpu")[:samples]


def _chosen(data: Any, samples: Tensor, size: int) -> list[Batch]:
    """Return some samples in batches; what holds no samples stays as it is."""
    pick = lambda t: t[samples.to(t.device)] if is_batch(t) else t  # noqa: E731
    x, y = (map_tensors(pick, side) for side in (data.x, data.y))
    return split(Batch(x, y, len(samples)), size)


def _common_length(x: Any, y: Any) -> int:
    held = [*leaves(x), *leaves(y)]
    lengths = {len(t) for t in held if is_batch(t)}
    if not lengths:
        kinds = sorted({type(leaf).__name__ for leaf in held})
        raise TypeError(f"data: expected tensors of samples in x and y, got {', '.join(kinds)}")
    if len(lengths) != 1:
        raise ValueError(
            f"data: x and y must hold tensors of one common length, got lengths {sorted(lengths)}"
        )
    length = lengths.pop()
    if length == 0:
        raise ValueError("data: has no samples")
    return length
