"""What runs at a point in place of a model: with batch norm folded, cut, fused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from landscape_lib import first_layer, fusing
from landscape_lib.folding import Folded, load
from landscape_lib.weights import Weights


class Prepared:
    """A model with less to do. It shares all parameters with the model but those of folded layers.

    Args:
        model: in the mode in which it is to run.
        dtype: of parameters that are not shared.
        fold: see ``folding.can_fold``.
        cut: leave out the first layer, see ``first_layer``.
        fuse: see ``fusing.can_fuse``.

    Attributes:
        module: what to call.
        names: of its parameters and buffers. All names of what is shared: the model and its graph
            may each list another one first.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, fold: bool, cut: bool, fuse: bool
    ) -> None:
        self._folded = Folded(model) if fold else None
        self.module = self._folded.module.to(dtype) if self._folded else model
        if cut and (found := first_layer.cut(self.module)):
            self.module = found.rest
        if fuse and (joined := fusing.fused(self.module)):
            self.module = joined
        self.names = {n for n, _ in self.module.named_parameters(remove_duplicate=False)}
        self.names |= {n for n, _ in self.module.named_buffers(remove_duplicate=False)}

    def folded(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return the parameters of folded layers.

        Args:
            tensors: the model's parameters and running statistics, by name.
        """
        return self._folded.weights(tensors) if self._folded else {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters of folded layers; the others are the model's own."""
        load(self.module, self.folded(tensors))
