"""From what the caller gave to a task: data read, model tried, method and batches chosen."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from torch import nn

from landscape_lib import runtime
from landscape_lib.evaluation import precision
from landscape_lib.evaluation.batches import (
    Batch,
    first_batches,
    first_samples,
    group,
    is_whole,
    read_batches,
    read_stages,
    split,
)
from landscape_lib.evaluation.batchnorm import clamped
from landscape_lib.evaluation.given import check_classes
from landscape_lib.evaluation.losses import Seen
from landscape_lib.evaluation.measures import Measures
from landscape_lib.evaluation.points import Points
from landscape_lib.evaluation.settings import Settings, check_population
from landscape_lib.evaluation.task import Task, choose_method
from landscape_lib.evaluation.workload import DEFAULT_BATCH, fastest_batch, measured_together
from landscape_lib.fingerprint import Fingerprint, digest, digest_without_weights, to_json
from landscape_lib.slices import Slice

# Samples on which model, loss and metrics are tried before any work.
TRIED = 32

Batches = list[Batch]
Stages = list[Batches]


def prepare(
    model: nn.Module, slice: Slice, data: Any, asked: Settings
) -> tuple[Task, Fingerprint, dict[str, Any]]:
    """Return the task of an evaluation, its fingerprint and the attributes of its result."""
    size = asked.batch_size or DEFAULT_BATCH
    stages, total = read_stages(data, asked.samples, asked.tolerance, size, asked.seed)
    used = sum(batch.size for stage in stages for batch in stage)
    population = check_population(asked.population, total, used)
    calibration = _calibration(data, stages, total, size, asked)
    at = _points(model, slice, stages, calibration, asked)
    first, seen = _tried(at, stages, data)
    check_classes(asked.loss, seen.output, seen.target)
    measures = Measures(asked.loss, asked.metrics, seen)
    apart = measures.keep_apart(seen) and at.keeps_samples_apart(first, seen.output)
    if asked.tolerance is not None and not measures.per_sample:
        # No standard error, so all samples are needed: in the batches of a call without tolerance.
        stages, _ = read_stages(data, asked.samples, None, size, asked.seed)
    free = apart and asked.batch_size is None and is_whole(data) and not asked.depends_on_batches
    method = _method(model, at, first, measures, stages[0], free, asked)
    at.choose(method)
    if free and method == "loop":
        size = fastest_batch(at.model.work, at.model.device)
        stages, _ = read_stages(data, asked.samples, asked.tolerance, size, asked.seed)
    stages = [at.model.lay_out(stage) for stage in stages]
    stages = _weighed(at, measures, stages)
    groups = [group(stage, measured_together(at.model.work) if free else 0) for stage in stages]
    names = measures.names
    if asked.reference is not None:
        groups = [at.with_reference(stage, measures, asked.reference) for stage in groups]
        names += tuple(f"{name}_difference" for name in measures.names)
    task = Task(at, measures, at.shorten(groups), names, method, asked.tolerance, population)
    fingerprint = _fingerprint(model, task, stages, calibration, size, asked)
    return task, fingerprint, _attributes(task, data, fingerprint, asked)


def _calibration(data: Any, stages: Stages, total: int, size: int, asked: Settings) -> Batches:
    if asked.batchnorm != "reestimated":
        return []
    if is_whole(data):
        return read_batches(data, min(asked.calibration_samples, total), size, asked.seed)[0]
    return first_batches(stages[0], asked.calibration_samples)


def _points(
    model: nn.Module, slice: Slice, stages: Stages, calibration: Batches, asked: Settings
) -> Points:
    example = first_samples(stages[0][0].x)
    try:
        return Points(
            model,
            slice,
            example,
            asked.dtype,
            asked.training,
            asked.seed,
            asked.batchnorm,
            asked.statistics or (),
            calibration,
            asked.shortcuts,
        )
    except Exception as error:
        error.add_note(
            "landscape_lib.evaluate: the model is called as model(x), with x as it stands in data, "
            "or in the first of each pair of data. A model that takes more goes into a module that "
            "takes one x."
        )
        raise


def _tried(at: Points, stages: Stages, data: Any) -> tuple[Batch, Seen]:
    """Run the model on a few samples, or on the first batch if the caller made the batches."""
    # Of one sample it cannot be told whether a measure sees samples or batches.
    several = (batch for batch in stages[0] if batch.size > 1)
    first = next(several, stages[0][0])
    if is_whole(data):
        first = split(first, TRIED)[0]
    first = at.model.lay_out([first])[0]
    return first, Seen(at.output_of_model(first.x), first.y, first.size)


def _method(
    model: nn.Module,
    at: Points,
    first: Batch,
    measures: Measures,
    stage: Batches,
    free: bool,
    asked: Settings,
) -> str:
    if asked.method == "vmap" and at.vmap_differs(first, measures):
        raise ValueError(
            "method: 'vmap' gives other numbers than 'loop' for this model, which keeps parameters "
            "or state outside of its registered ones: expected 'loop' or 'auto', got 'vmap'"
        )
    if asked.method != "auto":
        return str(asked.method)
    net, together = at.model, stage[0].size
    if free and net.device.type != "cpu":
        best = fastest_batch(net.work, net.device)
        together = min(best, sum(batch.size for batch in stage))
    method = choose_method(model, net.device, net.work, together, asked.batchnorm)
    return method if method == "loop" or at.can_vmap(first, measures) else "loop"


def _weighed(at: Points, measures: Measures, stages: Stages) -> Stages:
    """Return the batches with what each sample weighs in the loss, if they weigh differently."""
    batches = list(itertools.chain(*stages))
    seen = (Seen(at.output_of_model(b.x), b.y, b.size) for b in batches)
    found = measures.weigh(seen, [b.y for b in batches])
    if found is None:
        return stages
    left = iter(found)
    return [[replace(batch, weights=next(left)) for batch in stage] for stage in stages]


def _fingerprint(
    model: nn.Module, task: Task, stages: Stages, calibration: Batches, size: int, asked: Settings
) -> Fingerprint:
    net, slice = task.points.model, task.points.slice
    along = [dict(vector) for vector in asked.statistics or ()]
    return {
        "model": digest_without_weights(model),
        "slice": digest([list(slice.basis), slice.coefficients(slice.coordinates)]),
        "data": digest([[batch.x, batch.y] for stage in stages for batch in stage]),
        "loss": digest(asked.loss),
        "metrics": digest(asked.metrics),
        "batchnorm": digest([asked.batchnorm, along, [batch.x for batch in calibration]]),
        "dtype": f"{asked.dtype} by autocast" if net.autocasts else str(asked.dtype),
        "float32_products": _products(task.points),
        "method": task.method,
        "training": str(asked.training),
        "seed": str(asked.seed),
        "batch_size": str(size),
        "tolerance": str((asked.tolerance, task.population) if asked.tolerance else None),
        "reference": digest(asked.reference),
        "shortcuts": str(asked.shortcuts),
    }


def _products(at: Points) -> str:
    precise = at.model.autocasts or at.model.dtype != torch.float32
    return "" if precise else precision.float32_products(at.model.device)


def _attributes(task: Task, data: Any, fingerprint: Fingerprint, asked: Settings) -> dict[str, Any]:
    net, slice, products = task.points.model, task.points.slice, _products(task.points)
    named = str(asked.dtype or net.dtype).removeprefix("torch.")
    source = getattr(data, "source", None)
    attributes: dict[str, Any] = {
        "fingerprint": to_json(fingerprint),
        "batchnorm": str(asked.batchnorm),  # numpy's strings are no netCDF attributes
        "dtype": named + (" by autocast" if net.autocasts else ""),
        "method": task.method,
        "population": task.population,
        "data": source if isinstance(source, str) else type(data).__name__,
        "device": runtime.device_name(net.device),
        "versions": json.dumps({"torch": str(torch.__version__), "xarray": xr.__version__}),
    }
    if products:
        attributes["float32_products"] = products
    if asked.batchnorm == "interpolated":
        coefficients = torch.from_numpy(slice.coefficients(slice.coordinates))
        along = asked.statistics or ()
        attributes["variance_clamped_points"] = int(clamped(along, coefficients).sum())
    return attributes
