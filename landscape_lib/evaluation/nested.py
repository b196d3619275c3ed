"""Tensors inside of dictionaries, sequences and data classes, as data sets hold them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return a nested value of the same kind with the function applied to each of its tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        changed = {key: map_tensors(function, item) for key, item in value.items()}
        return changed if type(value) is dict else type(value)(changed)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)([map_tensors(function, item) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        changed = {name: map_tensors(function, item) for name, item in fields.items()}
        return dataclasses.replace(value, **changed)
    return value


def leaves(value: Any) -> Iterator[Any]:
    """Go through what nested containers hold, in the order of :func:`map_tensors`."""
    if isinstance(value, Mapping):
        value = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in dataclasses.fields(value) if f.init]
    elif not isinstance(value, (list, tuple)):
        yield value
        return
    for item in value:
        yield from leaves(item)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of a nested value."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def cloned(value: Any) -> Any:
    """Return nested tensors that share memory with no other."""
    return map_tensors(lambda t: t.clone(), value)


def rebuilt(value: Any) -> Any:
    """Return the same tensors in containers of their own."""
    return map_tensors(lambda t: t, value)


def concatenated(parts: list[Any]) -> Any:
    """Join nested tensors of the same structure along their first dimension."""
    rows = zip(*(tensors_in(part) for part in parts), strict=True)
    joined = iter([torch.cat(row) for row in rows])
    return map_tensors(lambda _: next(joined), parts[0])


@contextlib.contextmanager
def naming(x: Any, y: Any) -> Iterator[None]:
    """Say with an error of the model or the loss what of ``data`` they were given."""
    try:
        yield
    except Exception as error:
        error.add_note(f"landscape_lib: data: this is at x = {_described(x)}, y = {_described(y)}")
        raise


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    said = f"{value.dtype} of shape {tuple(value.shape)}"
    if value.device.type == "cpu" and value.numel() and not value.dtype.is_floating_point:
        said += f", from {value.min().item()} to {value.max().item()}"
    return said


def check_classes(loss: Any, output: Any, targets: Any) -> None:
    """Raise an error unless the targets of a cross-entropy are classes that the output has."""
    known = any(loss is one for one in (F.cross_entropy, F.nll_loss))
    if not (known or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)):
        return
    if not (isinstance(output, Tensor) and isinstance(targets, Tensor)):
        return
    if output.dim() < 2 or targets.dim() != output.dim() - 1:
        return
    classes = output.shape[1]
    if targets.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"data: expected classes in y as torch.int64, got {targets.dtype}")
    counted = targets[targets != getattr(loss, "ignore_index", -100)]
    low, high = (int(n) for n in counted.aminmax()) if counted.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(
            f"data: expected classes from 0 to {classes - 1} in y, since the model has {classes} "
            f"outputs, got {low} to {high}"
        )
