"""What runs at a point in place of a model: folded, cut, fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from landscape_lib.evaluation.shortcuts import first_layer, fusing
from landscape_lib.evaluation.shortcuts.folding import Folded, load
from landscape_lib.weights import Weights


class Shortcuts(NamedTuple):
    """Which ways of doing less are taken.

    Attributes:
        fold: see ``folding.can_fold``.
        cut: leave out the first layer, see ``first_layer``.
        fuse: see ``fusing.can_fuse``.
    """

    fold: bool = False
    cut: bool = False
    fuse: bool = False


def cast(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Cast floating-point parameters and buffers, in place; complex ones keep both of their parts.

    ``module.to`` would drop the imaginary ones.
    """
    twin = {torch.float32: torch.complex64, torch.float64: torch.complex128}

    def to(t: Tensor) -> Tensor:
        if dtype is None or not (t.is_floating_point() or t.is_complex()):
            return t
        return t.to(twin.get(dtype, t.dtype)) if t.is_complex() else t.to(dtype)

    return module._apply(to)


class Prepared:
    """A model with less to do. It shares all parameters with the model but those of folded layers.

    Args:
        model: in the mode in which it is to run.
        dtype: of parameters that are not shared.
        shortcuts: to take.

    Attributes:
        module: what to call.
        names: of its parameters and buffers. All names of what is shared: the model and its graph
            may each list another one first.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, shortcuts: Shortcuts) -> None:
        self._folded = Folded(model) if shortcuts.fold else None
        self.module = cast(self._folded.module, dtype) if self._folded else model
        if shortcuts.cut and (found := first_layer.cut(self.module)):
            self.module = found.rest
        if shortcuts.fuse and (joined := fusing.fused(self.module)):
            self.module = joined
        self.names = {n for n, _ in self.module.named_parameters(remove_duplicate=False)}
        self.names |= {n for n, _ in self.module.named_buffers(remove_duplicate=False)}

    @property
    def folds(self) -> bool:
        """Whether some of its parameters are not the model's."""
        return self._folded is not None and bool(self._folded.folded)

    def folded(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return the parameters of folded layers.

        Args:
            tensors: the model's parameters and running statistics, by name.
        """
        return self._folded.weights(tensors) if self._folded else {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters of folded layers; the others are the model's own."""
        load(self.module, self.folded(tensors))
