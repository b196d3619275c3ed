"""A model tried on a few samples: its habits, and whether another one is the same function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from landscape_lib.evaluation import precision
from landscape_lib.evaluation.nested import cloned, leaves, tensors_in
from landscape_lib.runtime import isolated_random_state, random_state

# What a module has beside its own attributes: compared elsewhere, or torch's own business.
_NOT_STATE = ("_parameters", "_modules", "training")


class Habits(NamedTuple):
    """What a model does beside computing its output.

    Attributes:
        overwrites: its inputs, which other passes are to read as well.
        draws: random numbers, torch's, numpy's or Python's.
        remembers: something from one pass for the next, in a buffer or an attribute.
    """

    overwrites: bool
    draws: bool
    remembers: bool


def private_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, also right after training.

    Weight norm and pruning keep tensors with a history as attributes, and some models their
    activations in a list or a dictionary: torch does not copy those.
    """
    _refuse_closures(model)
    held = [t for m in model.modules() for t in tensors_in(_state(m))]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in held if not t.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"model: expected one that copy.deepcopy copies, since the caller's is not to be "
            f"changed, got {type(model).__name__}: {error}"
        ) from error


def _refuse_closures(model: nn.Module) -> None:
    """Raise a ``ValueError`` if a function of the model refers to it: a copy's would, too."""
    own = {id(m) for m in model.modules()} | {id(p) for p in model.parameters()}
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        for function in (*vars(module).values(), *hooks):
            cells = getattr(function, "__closure__", None) or ()
            if isinstance(function, FunctionType) and any(_holds(cell, own) for cell in cells):
                raise ValueError(
                    f"model: the function {function.__qualname__!r} of {name or 'the model'} "
                    f"refers to the model by a closure, so a copy would use the original's "
                    f"weights: expected a method, or a registered module"
                )


def _holds(cell: CellType, own: set[int]) -> bool:
    try:
        return id(cell.cell_contents) in own
    except ValueError:  # it is empty
        return False


def habits(forward: Callable[[nn.Module, Any], Any], model: nn.Module, x: Any) -> Habits:
    """Learn a model's habits from one pass of a copy over a few samples, which stay as they are."""
    x, tried = cloned(x), private_copy(model)
    given, unchanged = tensors_in(x), cloned(tensors_in(x))
    devices = {t.device for t in given}
    versions, before = [t._version for t in given], random_state(devices)
    with torch.no_grad():
        forward(tried, x)
    overwrites = versions != [t._version for t in given]
    overwrites |= not _same(given, unchanged, set())  # through .data, or numpy
    draws = not _same(before, random_state(devices), set())
    pairs = zip(model.modules(), tried.modules(), strict=True)
    remembers = not all(_same(_state(one), _state(other), set()) for one, other in pairs)
    return Habits(overwrites, draws, remembers)


def _state(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _NOT_STATE}


def _same(one: Any, other: Any, seen: set[tuple[int, int]]) -> bool:
    """Say whether two values are alike in all that they hold; what cannot be compared is not."""
    if one is other or (id(one), id(other)) in seen:
        return True
    if type(one) is not type(other):
        return False
    seen.add((id(one), id(other)))
    if isinstance(one, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
            return False
        if one.layout != torch.strided:
            one, other = one.to_dense(), other.to_dense()
        return one.is_meta or torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other))
    if isinstance(one, dict):
        same = list(one) == list(other)
        return same and all(_same(one[key], other[key], seen) for key in one)
    if isinstance(one, (list, tuple)):
        same = len(one) == len(other)
        return same and all(_same(a, b, seen) for a, b in zip(one, other, strict=True))
    try:
        if bool(one == other):
            return True
    except Exception:
        return False
    return hasattr(one, "__dict__") and _same(vars(one), vars(other), seen)


def same_output(first: nn.Module, second: nn.Module, x: Any) -> bool:
    """Say whether two models give the same for the same inputs, up to rounding."""
    try:
        return same_values(output_of(first, x), output_of(second, x))
    except Exception:
        return False


def output_of(model: nn.Module, x: Any) -> Any:
    """Return a model's output, with the same random numbers every time."""
    with torch.no_grad(), isolated_random_state(0), precision.multiply_as(precision.EXACT):
        return model(cloned(x))


def move_somewhere(model: nn.Module) -> None:
    """Change all parameters and running statistics, those that are zero as well.

    A change that keeps a model's function at its own weights may have frozen a number that depends
    on them; and a last layer of zeros hides everything before it.
    """
    source = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=source, device="cpu").to(parameter)
            size = parameter.abs().mean() if parameter.numel() else 0.0
            parameter.add_((0.5 * size + 0.05) * noise)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1.25)


def same_values(expected: Any, found: Any) -> bool:
    """Say whether two outputs, tensors or nested ones, agree up to rounding."""
    one, other = list(leaves(expected)), list(leaves(found))
    return len(one) == len(other) and all(map(_agree, one, other))


def _agree(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return bool(expected == found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
    room = torch.finfo(expected.dtype).eps ** 0.5 if expected.is_floating_point() else 0.0
    return torch.allclose(expected, found, rtol=room, atol=room * largest, equal_nan=True)
