"""How the weights of a model lie in memory: in one vector, so that a point is one product."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from landscape_lib.weights import Weights

# Every tensor begins at a multiple of so many entries. A tensor of its own would, too, and fused
# kernels of GPUs rely on it: they read 16 bytes at a time.
ALIGNMENT = 16


class Layout:
    """The order in which the entries of weights are stored in one vector.

    Args:
        like: weights that give names and shapes.
        channels_last: store filters with their channels as the last axis.
    """

    def __init__(self, like: Mapping[str, Tensor], channels_last: bool) -> None:
        self.channels_last = channels_last
        self._stored = {name: self._permuted(t).shape for name, t in like.items()}
        self._sizes = {name: shape.numel() for name, shape in self._stored.items()}

    @property
    def count(self) -> int:
        """Number of entries of the weights, without gaps."""
        return sum(self._sizes.values())

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return weights as one vector; what fills the gaps is 0."""
        parts = []
        for name, size in self._sizes.items():
            flat = self._permuted(weights[name]).flatten()
            parts += [flat, flat.new_zeros(-size % ALIGNMENT)]
        return torch.cat(parts)

    def views(self, vector: Tensor) -> Weights:
        """Return the weights that a vector holds, as views of it."""
        found, start = {}, 0
        for name, shape in self._stored.items():
            size = self._sizes[name]
            tensor = vector[start : start + size].view(shape)
            found[name] = tensor.movedim(-1, 1) if self._turns(tensor) else tensor
            start += size + -size % ALIGNMENT
        return found

    def _turns(self, tensor: Tensor) -> bool:
        return self.channels_last and tensor.dim() == 4

    def _permuted(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1) if self._turns(tensor) else tensor
