"""The settings of a training run, checked before any weight changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from landscape_lib.closures import check_number
from landscape_lib.evaluation.batches import check_count


@dataclass(frozen=True)
class Settings:
    """What a run depends on beside model, data, optimiser and functions; see ``train``.

    They belong to the fingerprint of a checkpoint, by these names.

    Raises:
        ValueError: a setting is not possible.
    """

    epochs: int
    batch_size: int
    schedule_every: str
    record_every: int | None
    dtype: torch.dtype | None
    seed: int
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check what was given."""
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        if self.record_every is not None:
            check_count("record_every", self.record_every)
        if self.schedule_every not in ("step", "epoch"):
            raise ValueError(
                f"schedule_every: expected 'step' or 'epoch', got {self.schedule_every!r}"
            )
        check_number("weight_decay", self.weight_decay, least=0)
        if self.dtype not in (None, torch.bfloat16):
            raise ValueError(f"dtype: expected None or torch.bfloat16, got {self.dtype!r}")


def check_optimizer(model: nn.Module, optimizer: Optimizer, schedule: LRScheduler | None) -> None:
    """Raise an error unless they belong to each other."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer: expected one built on the model's parameters, got one that has none of them"
        )
    if schedule is None:
        return
    if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
        raise TypeError(
            f"schedule: expected a torch LRScheduler that steps without a metric, "
            f"got {type(schedule).__name__}"
        )
    if schedule.optimizer is not optimizer:
        raise ValueError("schedule: expected one of the given optimizer, got one of another")


def count_samples(data: Any) -> int:
    """Return the number of samples, or raise an error unless x and y have one length."""
    if not (hasattr(data, "x") and hasattr(data, "y")):
        raise TypeError(f"data: expected a data set with x and y, got {type(data).__name__}")
    for side in (data.x, data.y):
        if not isinstance(side, Tensor):
            raise TypeError(f"data: expected tensors x and y, got {type(side).__name__}")
    if len(data.x) != len(data.y) or len(data.x) == 0:
        raise ValueError(
            f"data: x and y must have one common length above 0, got {len(data.x)} and "
            f"{len(data.y)}"
        )
    return len(data.x)
