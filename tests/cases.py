"""One table of models, data and losses that the core must handle, small and in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tied(nn.Module):
    """An autoencoder whose decoder is the transpose of its encoder, with a tied output bias."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight
        self.decode.bias = self.encode.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


class Counting(nn.Module):
    """A model with integer and boolean buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("used", torch.tensor([True, False, True, True, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.used)[:, self.order]


@dataclass(frozen=True)
class Case:
    """A model, data of 23 samples, and a loss."""

    model: Callable[[], nn.Module]
    x: tuple[int, ...]
    classes: int | None
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy

    def build(self) -> tuple[nn.Module, SimpleNamespace]:
        """Return the model in float64 and its data, the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = self.model().double()
            x = torch.randn(23, *self.x, dtype=torch.float64)
            if self.classes is None:
                y = torch.randn(23, 6, dtype=torch.float64)
            else:
                y = torch.randint(0, self.classes, (23,))
            for module in model.modules():  # statistics that are not those of a new layer
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
        return model, SimpleNamespace(x=x, y=y)


CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (6,), 3),
    "cnn with batch norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        (2, 6, 6),
        3,
    ),
    "dropout": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)), (6,), 3
    ),
    "tied weights": Case(Tied, (6,), None, F.mse_loss),
    "integer buffers": Case(Counting, (6,), 3),
    "regression": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)), (6,), None, nn.MSELoss()
    ),
}
