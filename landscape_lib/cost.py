"""What an evaluation will cost, before it starts."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from landscape_lib.batches import Batch, check_count, move, read_batches
from landscape_lib.precision import check_dtype
from landscape_lib.slices import Slice
from landscape_lib.weights import check_like, weights_of
from landscape_lib.workload import workload

PEAK_TERAFLOPS = {
    # NVIDIA's data sheets: dense float32, and dense bfloat16 (float16 on T4 and V100).
    "T4": (8.1, 65.0),
    "V100": (15.7, 125.0),
    "L4": (30.3, 121.0),
    "A100": (19.5, 312.0),
    "H100": (66.9, 989.0),
    "H200": (66.9, 989.0),
}

# The share of the peak that plain PyTorch convolutions of moderate size reach; a rule of thumb.
EFFICIENCY = 0.3


@dataclass(frozen=True)
class Cost:
    """An estimate of the work of one evaluation.

    Attributes:
        points: number of points.
        samples: samples per point.
        flops_per_sample: floating-point operations of one forward pass of one sample; a
            multiplication and an addition are two. Convolutions and matrix products count.
        seconds: estimated time.
        rate: operations per second behind that estimate.
        basis: where the rate comes from.
    """

    points: int
    samples: int
    flops_per_sample: float
    seconds: float
    rate: float
    basis: str

    @property
    def flops(self) -> float:
        """Operations in all."""
        return self.points * self.samples * self.flops_per_sample

    @property
    def flops_per_point(self) -> float:
        """Operations at one point."""
        return self.samples * self.flops_per_sample

    def __str__(self) -> str:
        """Return the estimate as one sentence."""
        return (
            f"{self.points:,} points x {self.samples:,} samples x "
            f"{_si(self.flops_per_sample)}FLOP = {_si(self.flops)}FLOP: "
            f"about {_span(self.seconds)} ({self.basis}, {_si(self.rate)}FLOP/s)"
        )


def cost(
    model: nn.Module,
    slice: Slice,
    data: Any,
    *,
    samples: int | None = None,
    batch_size: int = 512,
    dtype: torch.dtype | None = None,
    gpu: str | None = None,
) -> Cost:
    """Estimate what :func:`landscape_lib.evaluate` will take.

    Args:
        model: as for ``evaluate``.
        slice: as for ``evaluate``.
        data: as for ``evaluate``.
        samples: as for ``evaluate``.
        batch_size: as for ``evaluate``.
        dtype: as for ``evaluate``.
        gpu: a key of ``PEAK_TERAFLOPS``: estimate for that GPU at 30 % of its peak. Without one,
            the time is measured here, on one batch at the model's own weights.

    Raises:
        TypeError, ValueError: unknown ``gpu``, bad data, or a slice of another model.
    """
    if not isinstance(slice, Slice):
        raise TypeError(f"slice: expected a Line, Plane or Slice, got {type(slice).__name__}")
    check_like(slice.origin, weights_of(model), "slice", "the model's parameters")
    check_count("batch_size", batch_size)
    check_dtype(dtype)
    if gpu is not None and gpu not in PEAK_TERAFLOPS:
        raise ValueError(f"gpu: expected one of {tuple(PEAK_TERAFLOPS)}, got {gpu!r}")
    batches, total = read_batches(data, samples, batch_size, 0)
    used = sum(batch.size for batch in batches)
    probe = copy.deepcopy(model).eval().requires_grad_(False).to(dtype=dtype)
    first = next(probe.parameters())
    batch = move(batches[0], first.device, first.dtype)
    with torch.no_grad():
        per_sample = workload(probe, batch.x).flops
        if gpu is None:
            seconds = _seconds(probe, batch) / batch.size * used * len(slice)
            rate = per_sample * used * len(slice) / seconds
            return Cost(len(slice), used, per_sample, seconds, rate, "measured here on one batch")
    half = dtype in (torch.bfloat16, torch.float16)
    rate = PEAK_TERAFLOPS[gpu][half] * 1e12 * EFFICIENCY
    seconds = per_sample * used * len(slice) / rate
    basis = f"{gpu} at {EFFICIENCY:.0%} of its peak"
    return Cost(len(slice), used, per_sample, seconds, rate, basis)


def _seconds(model: nn.Module, batch: Batch) -> float:
    """Time one forward pass, the better of two after a first one."""
    best = float("inf")
    for attempt in range(3):
        started = time.perf_counter()
        model(batch.x)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - started)
    return best


def _si(value: float) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
