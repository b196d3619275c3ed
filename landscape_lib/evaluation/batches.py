"""Data for an evaluation: any data set or iterable, as a list of batches that can be re-read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from landscape_lib.evaluation.trials import cloned, output_of, same_values
from landscape_lib.runtime import generator


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of ``size`` samples; both may be nested (dicts, tuples) of tensors."""

    x: Any
    y: Any
    size: int


@dataclass(frozen=True)
class Group:
    """Samples that are measured together, after one forward pass or several.

    Attributes:
        passes: inputs of each forward pass.
        y: targets of all of them.
        size: number of samples.
        reference: what was measured on the same samples at a point to compare with, shape
            (measures, size).
    """

    passes: tuple[Any, ...]
    y: Any
    size: int
    reference: Tensor | None = None


def read_batches(
    data: Any, samples: int | None, batch_size: int, seed: int
) -> tuple[list[Batch], int]:
    """Read ``data`` once.

    Args:
        data: anything with ``x`` and ``y``, or an iterable of ``(x, y)`` batches.
        samples: size of a random subset, or ``None`` for all; needs ``x`` and ``y``.
        batch_size: samples per batch where data come whole.
        seed: of the subset.

    Returns:
        The batches, and the number of samples in all of ``data``.

    Raises:
        TypeError: ``data`` is neither, or holds no tensors.
        ValueError: no samples, unequal lengths, or ``samples`` out of range.
    """
    if hasattr(data, "x") and hasattr(data, "y"):
        total = _common_length(data.x, data.y)
        return _split(data.x, data.y, total, samples, batch_size, seed), total
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
            )
        batches.append(Batch(item[0], item[1], _common_length(item[0], item[1])))
    if not batches:
        raise ValueError("data: has no batches (an iterator that was used up before?)")
    if samples is not None:
        raise ValueError("samples: a subset needs data with x and y, not an iterable of batches")
    return batches, sum(batch.size for batch in batches)


FIRST_STAGE = 256


def read_stages(
    data: Any, samples: int | None, tolerance: float | None, batch_size: int, seed: int
) -> tuple[list[list[Batch]], int]:
    """Read ``data`` as stages, of which later ones are only needed for more certainty.

    Args:
        data: as for :func:`read_batches`.
        samples: largest number of samples to use; all if ``None``.
        tolerance: without one there is a single stage; with one the first stage is a random subset
            of 256, and each later one doubles what came before.
        batch_size: samples per batch.
        seed: of the order in which samples are taken.

    Returns:
        Lists of batches, and the number of samples in all of ``data``.

    Raises:
        ValueError: as :func:`read_batches`, or a tolerance with an iterable of batches.
    """
    if tolerance is None:
        batches, total = read_batches(data, samples, batch_size, seed)
        return [batches], total
    if not (hasattr(data, "x") and hasattr(data, "y")):
        raise ValueError("tolerance: needs data with x and y, not an iterable of batches")
    total = _common_length(data.x, data.y)
    if samples is not None:
        check_count("samples", samples, most=total)
    order = torch.randperm(total, generator=generator(seed))[:samples]
    ends = [min(FIRST_STAGE, len(order))]
    while ends[-1] < len(order):
        ends.append(min(2 * ends[-1], len(order)))
    stages = []
    for start, end in zip([0, *ends], ends, strict=False):
        chosen = order[start:end]
        x, y = (_chosen(side, chosen) for side in (data.x, data.y))
        stages.append(_split(x, y, end - start, None, batch_size, seed))
    return stages, total


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Raise a ``ValueError`` unless ``value`` is a whole number from 1 to ``most``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        bounds = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value!r}")


def move(
    batch: Batch, device: torch.device, dtype: torch.dtype | None, channels_last: bool = False
) -> Batch:
    """Return the batch on ``device``, its floating-point tensors as ``dtype`` if one is given.

    With ``channels_last`` images are laid out that way: the same numbers, and convolutions two to
    three times as fast on a CPU.
    """

    def move_tensor(tensor: Any, last: bool = False) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        tensor = tensor.to(device, dtype if tensor.is_floating_point() else None)
        if last and tensor.dim() == 4:
            # contiguous() leaves images of one channel as they are, and convolutions then do not
            # see that they are channels-last.
            empty = torch.empty_like(tensor, memory_format=torch.channels_last)
            return empty.copy_(tensor)
        return tensor

    x = tree_map(partial(move_tensor, last=channels_last), batch.x)
    return replace(batch, x=x, y=tree_map(move_tensor, batch.y))


def split(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into batches of ``size`` samples."""

    def part(start: int) -> Any:
        cut = lambda leaf: leaf[start : start + size] if is_batch(leaf) else leaf  # noqa: E731
        return Batch(tree_map(cut, batch.x), tree_map(cut, batch.y), min(size, batch.size - start))

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
    return tree_map(lambda leaf: leaf[:2] if is_batch(leaf) else leaf, x)


def is_batch(leaf: Any) -> bool:
    """Say whether a leaf of nested data holds one entry per sample."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def group(batches: list[Batch], most: int) -> list[Group]:
    """Gather batches, up to ``most`` samples together, if their targets are nothing but tensors.

    Measuring costs some twenty small operations, as much as a forward pass of few samples.
    """
    leaves = [(leaf, batch.size) for batch in batches for leaf in tree_flatten(batch.y)[0]]
    if not all(isinstance(leaf, Tensor) and leaf.shape[:1] == (n,) for leaf, n in leaves):
        most = 0
    groups: list[Group] = []
    for batch in batches:
        last = groups[-1] if groups else None
        if last is None or last.size + batch.size > most:
            groups.append(Group((batch.x,), batch.y, batch.size))
        else:
            y = tree_map(lambda *parts: torch.cat(parts), last.y, batch.y)
            groups[-1] = Group((*last.passes, batch.x), y, last.size + batch.size)
    return groups


def own(group: Group) -> Group:
    """Return the group with tensors that share memory with no other."""
    return replace(group, passes=cloned(group.passes), y=cloned(group.y))


def channels_last_pays(device: torch.device, dtype: torch.dtype, method: str = "loop") -> bool:
    """Say whether convolutions are faster on images that are stored channels-last.

    On a CPU they are, two to three times. The float32 convolutions of a GPU are slower, up to
    three times on an H100, and under ``vmap`` not all operations of a GPU take that layout.

    Args:
        device: where they run.
        dtype: in which they multiply.
        method: ``"loop"`` or ``"vmap"``.
    """
    return device.type == "cpu" or (dtype.itemsize == 2 and method == "loop")


def reads_channels_last(model: nn.Module, x: Any, expected: Any = None) -> bool:
    """Say whether a model runs on channels-last images: one that takes views may not.

    Args:
        model: in the mode in which to try it, best in eval mode.
        x: inputs on the model's device, of which two samples are tried.
        expected: what it gives for these two in the default layout, to compare with.
    """
    tensors = [leaf for leaf in tree_flatten(x)[0] if isinstance(leaf, Tensor)]
    if not any(tensor.dim() == 4 for tensor in tensors):
        return False
    few = Batch(first_samples(x), None, 1)
    try:
        last = move(few, tensors[0].device, None, channels_last=True).x
        output = output_of(model, last)
    except Exception:
        return False
    return expected is None or same_values(expected, output)


def _split(
    x: Any, y: Any, total: int, samples: int | None, batch_size: int, seed: int
) -> list[Batch]:
    if samples is not None:
        check_count("samples", samples, total)
        chosen = torch.randperm(total, generator=generator(seed))[:samples].sort().values
        x, y = _chosen(x, chosen), _chosen(y, chosen)
        total = samples
    return split(Batch(x, y, total), batch_size)


def _chosen(side: Any, samples: Tensor) -> Any:
    """Return some samples of nested data; what holds no samples stays as it is."""
    return tree_map(lambda t: t[samples.to(t.device)] if is_batch(t) else t, side)


def _common_length(x: Any, y: Any) -> int:
    leaves = tree_flatten((x, y))[0]
    lengths = {len(t) for t in leaves if isinstance(t, Tensor) and t.dim() > 0}
    if not lengths:
        kinds = sorted({type(leaf).__name__ for leaf in leaves})
        raise TypeError(f"data: expected tensors of samples in x and y, got {', '.join(kinds)}")
    if len(lengths) != 1:
        raise ValueError(
            f"data: x and y must hold tensors of one common length, got lengths {sorted(lengths)}"
        )
    length = lengths.pop()
    if length == 0:
        raise ValueError("data: has no samples")
    return length
