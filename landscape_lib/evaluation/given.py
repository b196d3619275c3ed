"""What a model and its loss were given, said where they do not take it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextlib.contextmanager
def naming(x: Any, y: Any) -> Iterator[None]:
    """Say with an error of the model or the loss what of ``data`` they were given."""
    try:
        yield
    except Exception as error:
        error.add_note(f"landscape_lib: data: this is at x = {_described(x)}, y = {_described(y)}")
        raise


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    said = f"{value.dtype} of shape {tuple(value.shape)}"
    if value.device.type == "cpu" and value.numel() and not value.dtype.is_floating_point:
        said += f", from {value.min().item()} to {value.max().item()}"
    return said


def check_classes(loss: Any, output: Any, targets: Any) -> None:
    """Raise an error unless the targets of a cross-entropy are classes that the output has."""
    known = any(loss is one for one in (F.cross_entropy, F.nll_loss))
    if not (known or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)):
        return
    if not (isinstance(output, Tensor) and isinstance(targets, Tensor)):
        return
    if output.dim() < 2 or targets.dim() != output.dim() - 1:
        return
    classes = output.shape[1]
    if targets.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"data: expected classes in y as torch.int64, got {targets.dtype}")
    counted = targets[targets != getattr(loss, "ignore_index", -100)]
    low, high = (int(n) for n in counted.aminmax()) if counted.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(
            f"data: expected classes from 0 to {classes - 1} in y, since the model has {classes} "
            f"outputs, got {low} to {high}"
        )
