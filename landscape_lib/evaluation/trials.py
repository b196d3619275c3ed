"""A model tried on a few samples: whether another is the same function, and its habits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from landscape_lib.evaluation import precision


class Habits(NamedTuple):
    """What a model does beside computing its output.

    Attributes:
        overwrites: its inputs, which other passes are to read as well.
        draws: random numbers.
    """

    overwrites: bool
    draws: bool


def habits(forward: Callable[[Any], Any], x: Any) -> Habits:
    """Learn a model's habits from one pass over a few samples, which stay as they are."""
    x = cloned(x)
    leaves = [leaf for leaf in tree_flatten(x)[0] if isinstance(leaf, Tensor)]
    versions, before = [leaf._version for leaf in leaves], _random_states(leaves)
    with torch.no_grad():
        forward(x)
    overwrites = versions != [leaf._version for leaf in leaves]
    same = map(torch.equal, before, _random_states(leaves))
    return Habits(overwrites, not all(same))


def _random_states(tensors: list[Tensor]) -> list[Tensor]:
    """Return the states of the generators of the CPU and of the GPUs on which tensors are."""
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def cloned(value: Any) -> Any:
    """Return nested tensors that share memory with no other."""
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, value)


def same_output(first: nn.Module, second: nn.Module, x: Any) -> bool:
    """Say whether two models give the same for the same inputs, up to rounding."""
    try:
        return same_values(output_of(first, x), output_of(second, x))
    except Exception:
        return False


def output_of(model: nn.Module, x: Any) -> Any:
    """Return a model's output with random numbers that are the same every time.

    Args:
        model: it may overwrite its inputs.
        x: a few samples.
    """
    with torch.no_grad(), torch.random.fork_rng(), precision.multiply_as(precision.EXACT):
        torch.manual_seed(0)
        return model(cloned(x))


def move_somewhere(model: nn.Module) -> None:
    """Change all parameters and running statistics, those that are zero as well.

    A change that keeps a model's function at its own weights may have frozen a number that depends
    on them; and a last layer of zeros hides everything before it.
    """
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=source).to(parameter)
            size = parameter.abs().mean() if parameter.numel() else 0.0
            parameter.add_((0.5 * size + 0.05) * noise)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1.25)


def same_values(expected: Any, found: Any) -> bool:
    """Say whether two outputs, tensors or nested ones, agree up to rounding."""
    one, other = tree_flatten(expected)[0], tree_flatten(found)[0]
    return len(one) == len(other) and all(map(_agree, one, other))


def _agree(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return bool(expected == found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
    room = torch.finfo(expected.dtype).eps ** 0.5 if expected.is_floating_point() else 0.0
    return torch.allclose(expected, found, rtol=room, atol=room * largest, equal_nan=True)
