"""The core: loss and metrics, with standard errors, at every point of a slice."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from numpy.typing import ArrayLike
from torch import nn

from landscape_lib import runtime
from landscape_lib.evaluation import precision
from landscape_lib.evaluation.batchnorm import statistics_of
from landscape_lib.evaluation.distribute import TURN
from landscape_lib.evaluation.losses import Measure
from landscape_lib.evaluation.prepare import prepare
from landscape_lib.evaluation.settings import Settings, check_points
from landscape_lib.evaluation.sums import SUMS, mean_and_error
from landscape_lib.evaluation.task import run_all
from landscape_lib.slices import FloatArray, Slice
from landscape_lib.weights import Weights


def evaluate(
    model: nn.Module,
    slice: Slice,
    data: Any,
    *,
    loss: Measure = F.cross_entropy,
    metrics: Mapping[str, Measure] | None = None,
    batchnorm: str = "frozen",
    statistics: Sequence[Weights] | None = None,
    calibration_samples: int = 1024,
    dtype: torch.dtype | None = None,
    method: str = "auto",
    samples: int | None = None,
    tolerance: float | None = None,
    population: float | None = None,
    points: ArrayLike | None = None,
    reference: Weights | None = None,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    training: bool = False,
    store: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: bool = True,
    seed: int = 0,
    shortcuts: bool = True,
) -> xr.Dataset:
    """Evaluate a model's loss and metrics at every point of a slice.

    The model is copied; the caller's model, its mode, gradients and buffers, and the global random
    state stay as they are. It runs in eval mode on the device of its parameters.

    Args:
        model: any module whose named parameters are those of the slice.
        slice: the points: a ``Line``, a ``Plane`` or a ``Slice``.
        data: anything with ``x`` and ``y`` (first dimension: samples), or an iterable of
            ``(x, y)`` batches, read once.
        loss: callable ``(output, target) -> scalar mean``. Losses that take
            ``reduction="none"`` also give standard errors; class weights and ignored targets count
            as the loss counts them. Weight decay is not part of it.
        metrics: name -> callable ``(output, target)`` giving one value per sample, or a scalar
            mean. ``None`` means accuracy if the targets are class indices.
        batchnorm: which statistics batch norm uses; four different functions.
            ``"frozen"``: the running statistics of ``model`` at every point.
            ``"interpolated"``: running statistics that move along the slice; needs ``statistics``.
            ``"reestimated"``: measured anew at each point over ``calibration_samples`` samples.
            ``"batch"``: those of each batch, so that the result depends on ``batch_size``.
        statistics: for ``"interpolated"``: one dictionary per vector of the slice's basis, for a
            line between two models ``[batchnorm.statistics_of(first), ...of(second)]``.
        calibration_samples: for ``"reestimated"``: size of the fixed random subset; of an iterable
            the first samples are taken.
        dtype: compute dtype of weights and inputs, for example ``torch.float64``; the model's own
            by default. With 16 bits on an accelerator weights and inputs are float32, and the model
            runs under ``torch.autocast``: products are in ``dtype``, normalisation and softmax in
            float32 (see ``precision``). Whether products of float32 may be rounded to TF32 is
            torch's setting, here and on workers; the attribute ``float32_products`` says so. Sums
            over samples are always float64.
        method: ``"loop"`` goes point by point, ``"vmap"`` runs ``chunk_size`` points at once: same
            numbers up to rounding. ``"auto"`` takes ``"vmap"`` where launching small operations
            costs more than the arithmetic (see ``task.choose_method``) and the model allows it;
            the result says which.
        samples: evaluate a random subset of this size, the same at every point.
        tolerance: stop at each point as soon as the standard errors of loss and metrics are all
            below it: the subset starts at 256 samples and doubles, up to ``samples`` or all. Every
            subset is part of the larger ones. Where few samples make the loss, a subset without
            them stops early with a standard error that is too small.
        population: the number of samples that the mean stands for, in the standard errors. The
            default is the data set itself, so that evaluating all of it leaves no error;
            ``math.inf`` stands for the distribution that the data were drawn from.
        points: indices of the points to evaluate, in the slice's own order; the others are NaN. All
            by default.
        reference: weights to compare every point with, sample by sample. The result then also has
            ``loss_difference`` (point minus reference) and so on, with standard errors that are
            smaller than those of the two values apart, since both see the same samples. Batch norm
            keeps the statistics that ``batchnorm`` gives the model: not those of another one.
        batch_size: samples per forward pass (ignored if ``data`` comes in batches). ``None`` means
            512 under ``vmap`` and where the result depends on it: batch norm measures batches, or
            the loss gives only means of them. Else it means as many as are fastest: on a CPU those
            whose activations its caches hold, on an accelerator up to 16,384.
        chunk_size: points per ``vmap`` call; chosen if ``None``.
        training: run in training mode (dropout active, the same masks at every point; on a GPU
            ``"vmap"`` draws others than ``"loop"``). Batch norm follows ``batchnorm`` all the same.
        store: path of a file to which finished points are written; resumes from it if it exists.
            A process that is killed loses only what it was computing. ``xarray.open_dataset`` shows
            at any time what is known of the surface; see ``evaluation.store``.
        executor: run chunks of points on its workers; see ``distribute``. Threads of one process
            take turns: random numbers are shared.
        progress: show a progress bar if it takes longer than two seconds.
        seed: of the subset and of random numbers drawn by the model.
        shortcuts: take ways that give the same numbers faster, see ``evaluation.shortcuts``.

    Returns:
        Dataset with dimensions ``("alpha",)``, ``("alpha", "beta")`` or ``("point",)`` and the
        variables ``loss``, ``loss_se``, one pair per metric, and ``samples``. NaN and inf stay. A
        standard error is NaN where the samples are a part of the population and all agree, and for
        a measure that gives only means of batches.
        The attribute ``flops`` is the work of the model as it is written, at all points of the
        result: what ``first_layer`` spares, and points out of the store, count in full, and samples
        of ``"reestimated"`` statistics once.

    Raises:
        TypeError, ValueError: bad input, named before any work is done.
        OSError: ``store`` cannot be written.
        StoreMismatch: ``store`` holds another computation; it is left untouched.
    """
    asked = Settings(
        loss,
        metrics,
        batchnorm,
        statistics,
        calibration_samples,
        dtype,
        method,
        samples,
        tolerance,
        population,
        reference,
        batch_size,
        chunk_size,
        training,
        store,
        executor,
        seed,
        shortcuts,
    )
    asked.check(model, slice)
    wanted = check_points(points, len(slice))
    _warn_of_statistics(model, slice, batchnorm)
    started = time.perf_counter()
    device = next(model.parameters()).device
    with TURN, runtime.isolated_random_state(seed), precision.as_written(device):
        task, fingerprint, attributes = prepare(model, slice, data, asked)
        surface = partial(_dataset, slice, task.names, task.population, attributes)
        values = run_all(task, wanted, chunk_size, store, executor, fingerprint, surface, progress)
    return surface(values).assign_attrs(
        seconds=round(time.perf_counter() - started, 3),
        flops=float(np.nansum(values[:, -1] + task.points.calibrating))
        * task.points.model.work.flops,
    )


def _warn_of_statistics(model: nn.Module, slice: Slice, policy: str) -> None:
    """Say that a line between two models does not end at the second one, if it does not."""
    if policy == "frozen" and slice.ends_are_models and statistics_of(model):
        warnings.warn(
            "batchnorm='frozen': all points of the line have the running statistics of the model "
            "given, so an end is its own model only if it has them, too. To take statistics "
            "along: batchnorm='interpolated', statistics=[batchnorm.statistics_of(start), "
            "batchnorm.statistics_of(end)]",
            stacklevel=3,
        )


def _dataset(
    slice: Slice,
    names: tuple[str, ...],
    population: float,
    attributes: dict[str, Any],
    values: FloatArray,
) -> xr.Dataset:
    sums = values[:, :-1].reshape(len(values), len(names), SUMS)
    mean, error = mean_and_error(sums, values[:, -1:], population)
    variables: dict[str, Any] = {}
    for k, name in enumerate(names):
        variables[name] = (slice.dims, mean[:, k].reshape(slice.shape))
        variables[f"{name}_se"] = (slice.dims, error[:, k].reshape(slice.shape))
    samples = np.nan_to_num(values[:, -1]).astype(np.int64)
    variables["samples"] = (slice.dims, samples.reshape(slice.shape))
    coordinates: dict[str, Any] = dict(slice.axes)
    if not coordinates:
        coordinates = {f"c{k}": ("point", c) for k, c in enumerate(slice.coordinates.T)}
    return xr.Dataset(variables, coords=coordinates, attrs=attributes)
