"""One evaluation as a task: its points run here or on workers, and are stored as they finish."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from landscape_lib import runtime
from landscape_lib.evaluation import precision
from landscape_lib.evaluation.batches import Group, own
from landscape_lib.evaluation.distribute import run_chunks
from landscape_lib.evaluation.measures import Measures
from landscape_lib.evaluation.points import Indices, Points
from landscape_lib.evaluation.store import SurfaceStore
from landscape_lib.evaluation.sums import SUMS, WEIGHTS, mean_and_error
from landscape_lib.evaluation.workload import Workload, points_at_once
from landscape_lib.fingerprint import Fingerprint
from landscape_lib.slices import FloatArray

# Operations in a forward pass up to which a CPU is faster with many points at once.
SMALL_CONVOLUTIONS = 1e8
SMALL_PRODUCTS = 5e8

# Operations in a forward pass, for each layer with weights, up to which an accelerator is: they
# take no longer than a launch. Measured on an H100, with 64 to 4,096 samples.
SMALL_LAYERS = 2.5e9

# Points that an accelerator is given without waiting for their results.
POINTS_QUEUED = 16


@dataclass
class Task:
    """All that is needed to evaluate points, here or in another process.

    Attributes:
        points: the model along the slice.
        measures: what is measured.
        stages: lists of groups; later stages are needed only while errors are too large.
        names: of the measures, and of their differences from a reference if there is one.
        method: ``"loop"`` or ``"vmap"``.
        tolerance: largest standard error, or ``None``.
        population: number of samples that the means stand for.
        products: torch's settings for products of float32 numbers, here and on every worker.
    """

    points: Points
    measures: Measures
    stages: list[list[Group]]
    names: tuple[str, ...]
    method: str
    tolerance: float | None
    population: float
    products: precision.Products = field(default_factory=precision.product_settings)

    def __getstate__(self) -> dict[str, Any]:
        # A group is a view of all data, and would be pickled with all of it.
        return vars(self) | {"stages": [[own(g) for g in stage] for stage in self.stages]}

    @property
    def flops_per_point(self) -> float:
        """Operations at one point where all samples are needed."""
        samples = sum(g.size for stage in self.stages for g in stage)
        return self.points.model.work.flops * (samples + self.points.calibrating)

    def run(self, indices: Indices) -> FloatArray:
        """Return sums and samples at some points, shape (k, names * SUMS + 1)."""
        try:
            return self._run(indices)
        except Exception as error:
            place = self.points.describe(self._first_failing(indices, error))
            if isinstance(error, torch.OutOfMemoryError):
                place += ": give a smaller batch_size, or chunk_size"
            error.add_note(f"landscape_lib.evaluate: at {place}")
            raise

    def _first_failing(self, indices: Indices, error: Exception) -> Indices:
        """Return the first point that fails alone, or all if none does."""
        # After an error of an accelerator all that comes fails as well.
        if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
            return indices
        for index in indices[:, None] if len(indices) > 1 else ():
            try:
                self._run(index)
            except Exception:
                return index
        return indices

    def _run(self, indices: Indices) -> FloatArray:
        values = np.zeros((len(indices), len(self.names) * SUMS + 1))
        active = np.arange(len(indices))
        device = self.points.model.device
        with torch.no_grad(), precision.multiply_as(self.products), precision.as_written(device):
            for stage in self.stages:
                sums = self.points.sums(indices[active], stage, self.measures, self.method)
                values[active, :-1] += sums.cpu().numpy().reshape(len(active), -1)
                values[active, -1] += sum(group.size for group in stage)
                active = active[self._too_uncertain(values[active])]
                if not active.size:
                    break
        return values

    def _too_uncertain(self, values: FloatArray) -> NDArray[np.bool_]:
        if self.tolerance is None:
            return np.ones(len(values), dtype=bool)
        sums = values[:, :-1].reshape(len(values), -1, SUMS)
        mean, error = mean_and_error(sums, values[:, -1:], self.population)
        # Where a mean is not finite, more samples cannot make it so, unless none has counted yet;
        # where there is no standard error, all samples are used.
        hopeless = ~np.isfinite(mean) & (sums[..., WEIGHTS] != 0)
        with np.errstate(invalid="ignore"):
            return np.any(~hopeless & ~(error <= self.tolerance), axis=1)


def choose_method(
    model: nn.Module, device: torch.device, work: Workload, batch: int, policy: str
) -> str:
    """Return ``"loop"`` or ``"vmap"`` by a rule that gives the same answer every time.

    On an accelerator a pass of little work is bound by launches, so points are batched. A CPU gains
    only where a pass is so small that the interpreter dominates, or where matrix products of many
    points become one (``benchmarks/methods.py``). Statistics measured at each point need the loop.
    """
    if policy == "reestimated":
        return "loop"
    if device.type != "cpu":
        layers = sum(p.dim() > 1 for p in model.parameters())
        return "vmap" if work.flops * batch <= SMALL_LAYERS * layers else "loop"
    convolutional = any(p.dim() > 2 for p in model.parameters())
    most = SMALL_CONVOLUTIONS if convolutional else SMALL_PRODUCTS
    return "vmap" if work.flops * batch <= most else "loop"


def run_all(
    task: Task,
    wanted: Indices,
    chunk_size: int | None,
    store: str | os.PathLike[str] | None,
    executor: Executor | None,
    fingerprint: Fingerprint,
    surface: Callable[[FloatArray], xr.Dataset],
    progress: bool,
) -> FloatArray:
    """Return sums and samples at the wanted points, NaN elsewhere; through store and executor."""
    total = len(task.points.slice)
    columns = [f"{name} {k}" for name in task.names for k in range(SUMS)] + ["samples"]
    values, pending, kept = np.full((total, len(columns)), np.nan), wanted, None
    if store is not None:
        kept = SurfaceStore(store, fingerprint, total, tuple(columns), surface)
        values, pending = kept.values, wanted[~kept.done[wanted]]
    if task.method == "loop":
        # An accelerator works on while the next points are prepared; a CPU gains nothing.
        chunk_size = 1 if task.points.model.device.type == "cpu" else POINTS_QUEUED
    elif chunk_size is None:
        largest = max(g.size // len(g.passes) for stage in task.stages for g in stage)
        model = task.points.model
        chunk_size = points_at_once(model.work, model.size, largest, model.device)
    bar = runtime.progress_bar(
        progress,
        desc=f"{tqdm.format_sizeof(task.flops_per_point)}FLOP/point",
        total=len(wanted),
        initial=len(wanted) - len(pending),
        unit="point",
    )
    chunks = [pending[k : k + chunk_size] for k in range(0, len(pending), chunk_size)]
    if executor is None:
        finished: Iterable[tuple[Indices, FloatArray]] = ((c, task.run(c)) for c in chunks)
    else:
        finished = run_chunks(executor, task, chunks)
    with bar, kept or contextlib.nullcontext():
        for indices, found in finished:
            values[indices] = found
            if kept is not None:
                kept.write(indices, values[indices])
            bar.update(len(indices))
    chosen = np.full_like(values, np.nan)
    chosen[wanted] = values[wanted]
    return chosen
