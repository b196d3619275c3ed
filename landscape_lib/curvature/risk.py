"""The mean loss over a data set, as a sum over its batches: what curvature is the curvature of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape_lib.evaluation.batches import Batch, first_samples, move
from landscape_lib.evaluation.losses import Measure, Seen
from landscape_lib.evaluation.measures import Measures
from landscape_lib.evaluation.nested import cloned
from landscape_lib.weights import weights_of


@dataclass(frozen=True)
class Share:
    """A batch, and its share of the mean."""

    x: Any
    y: Any
    size: int
    share: float


class Risk(nn.Module):
    """What a batch contributes to the mean loss, as a function of the batch."""

    def __init__(self, model: nn.Module, loss: Measure) -> None:
        super().__init__()
        self.model = model
        self._loss = (loss,)  # no submodule: it keeps its mode, and its parameters are fixed
        self._buffers_before = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def forward(self, batch: Share) -> Tensor:
        """Return the mean loss of a batch times its share."""
        x, y = cloned((batch.x, batch.y))
        return batch.share * self._loss[0](self.model(x), y).mean()

    def restore(self) -> None:
        """Undo what a pass has changed: every batch meets the model as it was given."""
        for module, name, buffer, before in self._buffers_before:
            setattr(module, name, buffer)
            buffer.detach_().copy_(before)


class Sum(nn.Module):
    """The loss that curvlinops asks for: shares of the mean are summed."""

    reduction = "sum"

    def forward(self, share: Tensor, target: Tensor) -> Tensor:
        """Return the share as it is."""
        return share


class Batches:
    """Batches that are moved to the device one by one, with their shares of the mean."""

    def __init__(
        self, batches: list[Batch], risk: Risk, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.risk, self.samples = risk, sum(batch.size for batch in batches)
        self._batches, self._device, self._dtype = batches, device, dtype
        self._shares = [batch.size / self.samples for batch in batches]
        self.vectors = 1
        self.tick: Callable[[int], Any] | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Share, Tensor]]:
        nothing = torch.zeros(())  # curvlinops moves the target: ours is part of the batch
        for batch, share in zip(self._batches, self._shares, strict=True):
            if share > 0:
                self.risk.restore()
                moved = move(batch, self._device, self._dtype)
                yield Share(moved.x, moved.y, batch.size, share), nothing
            if self.tick:
                self.tick(self.vectors)

    @contextmanager
    def two_samples(self) -> Iterator[None]:
        """Hold two samples only, within a block."""
        everything = self._batches, self._shares
        batch = next(b for b, share in zip(*everything, strict=True) if share > 0)
        x, y = first_samples((batch.x, batch.y))
        self._batches, self._shares = [Batch(x, y, min(2, batch.size))], [1.0]
        yield
        self._batches, self._shares = everything

    @torch.no_grad()
    def weigh(self, loss: Measure) -> float:
        """Find the shares of all batches, by what each sample weighs, and return the mean loss."""
        means: list[float] = []
        alike: list[bool] = []

        def seen() -> Iterator[Seen]:
            for batch, _ in self:
                yield Seen(self.risk.model(cloned(batch.x)), batch.y, batch.size)

        def noted() -> Iterator[Seen]:
            for one in seen():
                means.append(float(loss(one.output, one.target).mean()))
                alike.append(len(self) == 1 or measures.is_mean(one))
                yield one

        measures = Measures(loss, {}, next(seen()))  # a loss that is none is named
        every = noted()
        weights = measures.weigh(every, [batch.y for batch in self._batches])
        for _ in every:  # those that it did not look at
            pass
        if not (measures.per_sample or all(alike)):
            raise ValueError(
                "loss: expected the mean over the samples of a batch, got another function "
                "(classes that weigh differently, targets left out, a sum?): let it take "
                "reduction='none', or give all samples in one batch"
            )
        total = sum(float(each.sum()) for each in weights or ())
        if weights is not None and total > 0:
            self._shares = [float(each.sum()) / total for each in weights]
        return sum(s * m for s, m in zip(self._shares, means, strict=True) if s > 0)


def dtype_of(model: nn.Module, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype to compute in, if the model's parameters allow it."""
    weights = weights_of(model)
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"model: expected parameters of real numbers, {name!r} has {tensor.dtype}"
            )
    if dtype is not None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
        return dtype
    kinds = {tensor.dtype for tensor in weights.values()}
    return torch.float64 if torch.float64 in kinds else torch.float32


def check_batchnorm(model: nn.Module, policy: str) -> None:
    """Raise a ``ValueError`` unless batch norm has running statistics, and those are asked for."""
    if policy != "frozen":
        raise ValueError(
            f"batchnorm: expected 'frozen', the model's running statistics, got {policy!r}: "
            f"with other statistics the loss is another function"
        )
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ValueError(
                f"batchnorm: expected running statistics to freeze, the layer {name!r} keeps none"
            )
