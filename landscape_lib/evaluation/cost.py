"""What an evaluation will cost, before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from landscape_lib import runtime
from landscape_lib.evaluation.batches import check_count, first_samples, read_batches
from landscape_lib.evaluation.points import Points
from landscape_lib.evaluation.precision import check_dtype
from landscape_lib.evaluation.workload import DEFAULT_BATCH, fastest_batch
from landscape_lib.slices import Slice
from landscape_lib.weights import check_like, weights_of

PEAK_TERAFLOPS = {
    # NVIDIA's data sheets, dense and without TF32: float32, 16 bits, float64.
    "T4": (8.1, 65.0, 0.25),
    "V100": (15.7, 125.0, 7.8),
    "L4": (30.3, 121.0, 0.47),
    "A100": (19.5, 312.0, 9.7),
    "H100": (66.9, 989.0, 33.5),
    "H200": (66.9, 989.0, 33.5),
}

# They multiply float16 in these units, but not bfloat16.
WITHOUT_BFLOAT16 = ("T4", "V100")

# The share of the peak that an evaluation reaches, for the same three: what is between the products
# takes the more, the faster they are. Measured on an H100 with small CNNs, VGG-9 and ResNet-20: 12
# to 51 % in float32, 2 to 20 % in 16 bits.
EFFICIENCY = (0.2, 0.05, 0.2)


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
    batch_size: int | None = None,
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
        gpu: a key of ``PEAK_TERAFLOPS``: estimate for that GPU at a share of its peak,
            ``EFFICIENCY``; an H100 took 0.3 to 2.1 times as long. Without one, the time of a
            point is measured here, on one batch. The samples of ``"reestimated"`` statistics and
            of a ``reference`` come on top.

    Raises:
        TypeError, ValueError: unknown ``gpu``, bad data, or a slice of another model.
    """
    if not isinstance(slice, Slice):
        raise TypeError(f"slice: expected a Line, Plane or Slice, got {type(slice).__name__}")
    check_like(slice.origin, weights_of(model), "slice", "the model's parameters")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_dtype(dtype)
    if gpu is not None and (not isinstance(gpu, str) or gpu not in PEAK_TERAFLOPS):
        raise ValueError(f"gpu: expected one of {tuple(PEAK_TERAFLOPS)}, got {gpu!r}")
    with runtime.isolated_random_state(0):
        batches, _ = read_batches(data, samples, batch_size or DEFAULT_BATCH, 0)
        used = sum(batch.size for batch in batches)
        example = first_samples(batches[0].x)
        at = Points(model, slice, example, dtype)
        net = at.model
        per_sample = net.work.flops
        if gpu is not None:
            kind = {torch.bfloat16: 1, torch.float16: 1, torch.float64: 2}.get(
                dtype or net.dtype, 0
            )
            if dtype == torch.bfloat16 and gpu in WITHOUT_BFLOAT16:
                kind = 0
            rate = PEAK_TERAFLOPS[gpu][kind] * 1e12 * EFFICIENCY[kind]
            basis = f"{gpu} at {EFFICIENCY[kind]:.0%} of its peak"
            return Cost(
                len(slice), used, per_sample, per_sample * used * len(slice) / rate, rate, basis
            )
        if batch_size is None and hasattr(data, "x"):
            batches, _ = read_batches(data, samples, fastest_batch(net.work, net.device), 0)
        at.choose("loop")
        batch = net.lay_out(batches[:1])[0]
        with torch.no_grad():  # a point is gone to once, whatever the number of its batches
            there = _seconds(partial(at.go_to, 0), net.device)
            once = _seconds(partial(net.run, net.ready, batch.x), net.device)
        seconds = (there + once / batch.size * used) * len(slice)
        rate = per_sample * used * len(slice) / seconds
        return Cost(len(slice), used, per_sample, seconds, rate, "measured here on one batch")


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time some work, the better of two after a first one."""
    best = float("inf")
    for attempt in range(3):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
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
