"""A closure evaluated twice as the same function: random state and buffers given back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from landscape_lib.runtime import random_state, set_random_state


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

    Attributes:
        autocast: the type in which torch's autocast ran modules of the first evaluation, if it did.
    """

    autocast: torch.dtype | None = None

    def __init__(self, closure: Callable[[], Tensor], parameters: Iterable[Tensor]) -> None:
        self.closure = closure
        self._devices = {p.device for p in parameters}
        self._random: dict[Any, Any] = {}
        self._buffers: list[_Buffer] = []
        self._seen: set[Any] = set()
        self._thread = threading.get_ident()

    def first(self) -> Tensor:
        """Evaluate the closure; note the random state before it, and buffers as they are met."""
        self._random = random_state(self._devices)
        handle = register_module_forward_pre_hook(self._note_buffers)
        try:
            return self.closure()
        finally:
            handle.remove()

    def again(self) -> Tensor:
        """Evaluate the closure once more."""
        random_after = random_state(self._devices)
        buffers_after = [_Buffer(buffer.module, buffer.name) for buffer in self._buffers]
        self.undo_buffers()
        set_random_state(self._random)
        try:
            return self.closure()
        finally:
            for buffer in buffers_after:
                buffer.restore()
            set_random_state(random_after)

    def undo_buffers(self) -> None:
        """Give buffers the values that they had before the first evaluation."""
        for buffer in self._buffers:
            buffer.restore()

    @torch.no_grad()
    def _note_buffers(self, module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        for kind in {device.type for device in self._devices}:
            if torch.is_autocast_enabled(kind):
                self.autocast = torch.get_autocast_dtype(kind)
        if module in self._seen:
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
