"""The core: loss and metrics, with standard errors, at every point of a slice."""

from __future__ import annotations

import json
import os
import time
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
from landscape_lib.evaluation.batches import (
    Batch,
    first_batches,
    first_samples,
    group,
    read_batches,
    read_stages,
    split,
)
from landscape_lib.evaluation.batchnorm import check_statistics, clamped
from landscape_lib.evaluation.measures import Measure, Measures, mean_and_error
from landscape_lib.evaluation.points import Points
from landscape_lib.evaluation.settings import check_points, check_population, check_settings
from landscape_lib.evaluation.task import Task, choose_method, run_all
from landscape_lib.evaluation.workload import DEFAULT_BATCH, fastest_batch
from landscape_lib.fingerprint import describe_callable, describe_model, digest, to_json
from landscape_lib.slices import FloatArray, Slice
from landscape_lib.weights import Weights

# Samples on which model, loss and metrics are tried before any work.
TRIED = 32

# Samples whose outputs are measured in one go, so that measuring costs little beside computing.
MEASURED_TOGETHER = 4096


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
            ``reduction="none"`` also give standard errors. Weight decay is not part of it.
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
            subset is part of the larger ones.
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
            at any time what is known of the surface; see ``surface_store``.
        executor: run chunks of points on its workers; see ``distribute``. Two threads of one
            process must not evaluate at the same time: random numbers and tracing are shared.
        progress: show a progress bar if it takes longer than two seconds.
        seed: of the subset and of random numbers drawn by the model.

    Returns:
        Dataset with dimensions ``("alpha",)``, ``("alpha", "beta")`` or ``("point",)`` and the
        variables ``loss``, ``loss_se``, one pair per metric, and ``samples``. NaN and inf stay. A
        standard error is NaN where the samples are a part of the population and all agree.
        The attribute ``flops`` is the work of the model as it is written, at all points of the
        result: what ``first_layer`` spares, and points out of the store, count in full.

    Raises:
        TypeError, ValueError: bad input, named before any work is done.
        OSError: ``store`` cannot be written.
        StoreMismatch: ``store`` holds another computation; it is left untouched.
    """
    settings = {
        "batchnorm": batchnorm,
        "calibration_samples": calibration_samples,
        "dtype": dtype,
        "method": method,
        "tolerance": tolerance,
        "reference": reference,
        "batch_size": batch_size,
        "chunk_size": chunk_size,
        "training": training,
        "store": store,
        "executor": executor,
    }
    check_settings(model, slice, settings)
    batchnorm, method = str(batchnorm), str(method)  # numpy's strings are no netCDF attributes
    along = check_statistics(model, statistics, batchnorm, len(slice.basis))
    wanted = check_points(points, len(slice))

    started = time.perf_counter()
    with runtime.isolated_random_state(seed):
        size = batch_size or DEFAULT_BATCH
        read, total = read_stages(data, samples, tolerance, size, seed)
        used = sum(batch.size for stage in read for batch in stage)
        population = total if population is None else check_population(population, used)
        calibration: list[Batch] = []
        if batchnorm == "reestimated" and hasattr(data, "x"):
            calibration, _ = read_batches(data, min(calibration_samples, total), size, seed)
        elif batchnorm == "reestimated":
            calibration = first_batches(read[0], calibration_samples)
        example = first_samples(read[0][0].x)
        at = Points(model, slice, example, dtype, training, seed, batchnorm, along, calibration)
        net = at.model
        first = read[0][0]
        if hasattr(data, "x"):
            first = split(first, TRIED)[0]
        first = net.lay_out([first])[0]
        output = at.output_of_model(first)
        targets = [batch.y for stage in read for batch in stage]
        measures = Measures(loss, metrics, output, first.y, first.size, targets)
        free = batch_size is None and hasattr(data, "x") and measures.per_sample
        free = free and batchnorm in ("frozen", "interpolated")
        best = fastest_batch(net.work, net.device) if free else read[0][0].size
        if method == "auto":
            together = read[0][0].size
            if free and net.device.type != "cpu":
                together = min(best, sum(batch.size for batch in read[0]))
            method = choose_method(model, net.device, net.work, together, batchnorm)
            if method == "vmap" and not at.can_vmap(first, measures):
                method = "loop"
        at.choose(method)
        if free and method == "loop":
            size = best
            read, _ = read_stages(data, samples, tolerance, size, seed)
        read = [net.lay_out(stage) for stage in read]
        apart = measures.per_sample and at.keeps_samples_apart(first, output)
        together = MEASURED_TOGETHER if apart else 0
        stages = [group(stage, together) for stage in read]
        names = measures.names
        if reference is not None:
            stages = [at.with_reference(stage, measures, reference) for stage in stages]
            names += tuple(f"{name}_difference" for name in measures.names)
        stages = at.shorten(stages, method)
        task = Task(at, measures, stages, names, method, tolerance, float(population))
        precise = net.autocasts or net.dtype != torch.float32
        products = "" if precise else precision.float32_products(net.device)
        fingerprint = {
            "model": digest([describe_model(model), dict(model.named_buffers())]),
            "slice": digest([list(slice.basis), slice.coefficients(slice.coordinates)]),
            "data": digest([[batch.x, batch.y] for stage in read for batch in stage]),
            "loss": describe_callable(loss),
            "metrics": digest({n: describe_callable(m) for n, m in (metrics or {}).items()}),
            "batchnorm": digest([batchnorm, list(along), [batch.x for batch in calibration]]),
            "dtype": f"{dtype} by autocast" if net.autocasts else str(dtype),
            "float32_products": products,
            "method": method,
            "training": str(training),
            "seed": str(seed),
            "batch_size": str(size),
            "tolerance": str((tolerance, population) if tolerance else None),
            "reference": digest(reference),
        }
        attributes: dict[str, Any] = {
            "fingerprint": to_json(fingerprint),
            "batchnorm": batchnorm,
            "dtype": str(dtype or net.dtype).removeprefix("torch.")
            + (" by autocast" if net.autocasts else ""),
            "method": method,
            "population": float(population),
            "data": getattr(data, "source", type(data).__name__),
            "device": runtime.device_name(net.device),
            "versions": json.dumps({"torch": str(torch.__version__), "xarray": xr.__version__}),
        }
        if products:
            attributes["float32_products"] = products
        if batchnorm == "interpolated":
            coefficients = torch.from_numpy(slice.coefficients(slice.coordinates))
            attributes["variance_clamped_points"] = int(clamped(along, coefficients).sum())
        surface = partial(_dataset, slice, names, float(population), attributes)
        values = run_all(task, wanted, chunk_size, store, executor, fingerprint, surface, progress)
    return surface(values).assign_attrs(
        seconds=round(time.perf_counter() - started, 3),
        flops=float(np.nansum(values[:, -1])) * net.work.flops,
    )


def _dataset(
    slice: Slice,
    names: tuple[str, ...],
    population: float,
    attributes: dict[str, Any],
    values: FloatArray,
) -> xr.Dataset:
    sums = values[:, :-1].reshape(len(values), len(names), 2)
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
