"""Optimisers of other people, in the form in which ours are called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def sam(parameters: Iterable[Tensor], **settings: Any) -> Optimizer:
    """Return sharpness-aware minimization around SGD (Foret et al., 2021).

    A step takes two gradients of one batch: at the weights, and at a distance ``rho`` up the first.
    Needs ``pytorch_optimizer``.

    Args:
        parameters: of the model.
        **settings: ``rho``, and those of ``torch.optim.SGD``.
    """
    from pytorch_optimizer import SAM

    class Sharpness(SAM):
        def step(self, closure: Any = None) -> Any:
            with torch.enable_grad():
                loss = closure()
            super().step(closure)
            return loss

    return Sharpness(parameters, torch.optim.SGD, **settings)


def line_search(parameters: Iterable[Tensor], **settings: Any) -> Optimizer:
    """Return SaLSA, an Armijo line search along Adam's direction (Kenneweg et al., 2024).

    Armijo line searches for minibatches: Vaswani et al. 2019. Needs ``salsa-optimizer``.

    Args:
        parameters: of the model.
        **settings: of ``salsa.SaLSA``; ``c`` is the share of the linear decrease that is asked for.
    """
    from salsa.SaLSA import SaLSA

    parameters = list(parameters)
    # Its own choice is the first GPU, wherever the model is.
    vars(sys.modules[SaLSA.__module__])["device"] = parameters[0].device

    class LineSearch(SaLSA):
        closure_without_backward = True

        def step(self, closure: Callable[[], Tensor]) -> Any:
            def both(backwards: bool = False) -> Tensor:
                if backwards:
                    self.zero_grad()
                loss = closure()
                if backwards:
                    loss.backward()
                return loss

            return super().step(both)

    return LineSearch(parameters, **settings)
