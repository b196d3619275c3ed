"""The loss of a batch as our optimisers ask for it: with its gradient, and again elsewhere."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

Closure = Callable[[], Tensor]


def check_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float
) -> None:
    """Raise a ``ValueError`` unless ``value`` is a real number in the range.

    Args:
        name: of the argument.
        value: what was given.
        above: the number lies above this one.
        least: or is at least this one.
        most: the number is at most this one; ``inf`` asks for any finite number.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    low = above if above is not None else least
    assert low is not None
    fits = real and value <= most and abs(value) != float("inf")
    if not (fits and (value > low if above is not None else value >= low)):
        bounds = f"above {low:g}" if above is not None else f"of at least {low:g}"
        bounds += "" if most == float("inf") else f", at most {most:g}"
        raise ValueError(f"{name}: expected a finite number {bounds}, got {value!r}")


def check_parameters(group: dict[str, Any]) -> None:
    """Raise a ``TypeError`` unless all parameters of an optimiser's group are real numbers."""
    for parameter in group["params"]:
        if not parameter.is_floating_point() or parameter.is_sparse:
            raise TypeError(
                f"params: expected dense tensors of real numbers, got {parameter.layout} of "
                f"{parameter.dtype}"
            )


def common(groups: Sequence[dict[str, Any]], name: str, why: str) -> Any:
    """Return the one value that a setting has in all groups.

    Raises:
        ValueError: groups differ.
    """
    values = [group[name] for group in groups]
    if any(value != values[0] for value in values[1:]):
        raise ValueError(f"{name}: expected one value for all groups ({why}), got {values}")
    return values[0]


def check_closure(closure: Any) -> None:
    """Raise a ``TypeError`` unless an optimiser was given a closure."""
    if not callable(closure):
        raise TypeError(
            f"closure: expected a callable that returns the loss of a batch, "
            f"got {type(closure).__name__}"
        )


def loss_with_gradient(optimizer: Optimizer, closure: Closure) -> Tensor:
    """Evaluate a closure and let autograd put the gradient of its loss into ``.grad``.

    Gradients that were there before are cleared.

    Args:
        optimizer: whose parameters those are.
        closure: returns the loss of a batch, a scalar, without calling ``backward``.

    Returns:
        The loss, without its graph.

    Raises:
        TypeError: the closure returns no scalar tensor.
        RuntimeError: it called ``backward``, or its loss depends on no parameter.
    """
    optimizer.zero_grad()
    with torch.enable_grad():
        loss = _scalar(closure())
        if _has_gradient(optimizer):
            raise RuntimeError(
                f"closure: expected no call of backward, which {type(optimizer).__name__} makes "
                f"itself, got gradients"
            )
        if loss.requires_grad:
            loss.backward()
    if not _has_gradient(optimizer):
        raise RuntimeError(
            "closure: expected a loss that depends on the optimizer's parameters, got one without "
            "a gradient there (computed under no_grad, or detached?)"
        )
    return loss.detach()


def _has_gradient(optimizer: Optimizer) -> bool:
    groups = optimizer.param_groups
    return any(p.grad is not None for group in groups for p in group["params"])


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() > 0:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"closure: expected it to return the loss, a scalar tensor, got {given}")
    return loss


class Replay:
    """A closure that is evaluated twice as the same function of the weights.

    The second evaluation starts from the random state and the buffers (running statistics of batch
    norm, vectors of spectral norm, ...) from which the first one did, and leaves both as the first
    one left them. Random states are the global ones: torch's on the CPU and on the parameters'
    devices, numpy's and Python's. Buffers are those of all modules that the closure calls in the
    present thread.

    Args:
        closure: what is evaluated.
        parameters: whose devices are in use.
    """

    def __init__(self, closure: Closure, parameters: Iterable[Tensor]) -> None:
        self.closure = closure
        self._devices = {p.device for p in parameters if p.device.type == "cuda"}
        self._random: dict[Any, Any] = {}
        self._buffers: list[_Buffer] = []
        self._seen: set[Any] = set()
        self._thread = threading.get_ident()

    def first(self) -> Tensor:
        """Evaluate the closure; note the random state before it, and buffers as they are met."""
        self._random = _random_state(self._devices)
        handle = register_module_forward_pre_hook(self._note_buffers)
        try:
            return self.closure()
        finally:
            handle.remove()

    def again(self) -> Tensor:
        """Evaluate the closure once more."""
        random_after = _random_state(self._devices)
        buffers_after = [_Buffer(buffer.module, buffer.name) for buffer in self._buffers]
        self.undo_buffers()
        _set_random_state(self._random)
        try:
            return _scalar(self.closure())
        finally:
            for buffer in buffers_after:
                buffer.restore()
            _set_random_state(random_after)

    def undo_buffers(self) -> None:
        """Give buffers the values that they had before the first evaluation."""
        for buffer in self._buffers:
            buffer.restore()

    @torch.no_grad()
    def _note_buffers(self, module: nn.Module, inputs: Any) -> None:
        if module in self._seen or threading.get_ident() != self._thread:
            return
        # All inside at once: compiled and scripted modules do not call their children.
        for inner in module.modules():
            self._seen.add(inner)
            for name, tensor in inner._buffers.items():
                if tensor is not None and id(tensor) not in self._seen:
                    self._seen.add(id(tensor))
                    self._buffers.append(_Buffer(inner, name))


class _Buffer:
    """The value that a buffer of a module had, also if another tensor has taken its place."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        tensor = module._buffers[name]
        assert tensor is not None
        self.tensor, self.value = tensor, tensor.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        self.tensor.copy_(self.value)
        if self.module._buffers[self.name] is not self.tensor:
            self.module._buffers[self.name] = self.tensor


def _random_state(devices: Iterable[torch.device]) -> dict[Any, Any]:
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_random_state(state: dict[Any, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    for device, value in state["cuda"].items():
        torch.cuda.set_rng_state(value, device)
