"""Tensors inside of dictionaries, sequences and data classes, as data sets hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


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
