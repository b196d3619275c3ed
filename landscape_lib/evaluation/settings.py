"""The arguments of an evaluation, checked before any work and kept as one object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from landscape_lib.evaluation.batches import check_count
from landscape_lib.evaluation.batchnorm import check_policy, check_statistics
from landscape_lib.evaluation.losses import Measure
from landscape_lib.evaluation.precision import check_dtype
from landscape_lib.files import local_path
from landscape_lib.slices import Slice
from landscape_lib.weights import Weights, check_like, weights_of

METHODS = ("auto", "loop", "vmap")


@dataclass(frozen=True)
class Settings:
    """What ``evaluate`` was asked for; the attributes are its arguments."""

    loss: Measure
    metrics: Mapping[str, Measure] | None
    batchnorm: str
    statistics: Sequence[Weights] | None
    calibration_samples: int
    dtype: torch.dtype | None
    method: str
    samples: int | None
    tolerance: float | None
    population: float | None
    reference: Weights | None
    batch_size: int | None
    chunk_size: int | None
    training: bool
    store: str | os.PathLike[str] | None
    executor: Executor | None
    seed: int
    shortcuts: bool

    def check(self, model: nn.Module, slice: Any) -> None:
        """Raise an error that names the argument unless all settings are possible."""
        if not isinstance(slice, Slice):
            raise TypeError(f"slice: expected a Line, Plane or Slice, got {_kind(slice)}")
        weights, policy = weights_of(model), self.batchnorm
        if any(tensor.is_meta for tensor in weights.values()):
            raise ValueError("model: expected weights with values, got parameters on device 'meta'")
        check_like(slice.origin, weights, "slice", "the model's parameters")
        check_policy(model, policy)
        check_statistics(model, self.statistics, policy, len(slice.basis))
        _check_method(self.method, policy)
        check_count("calibration_samples", self.calibration_samples)
        for name, value in (("batch_size", self.batch_size), ("chunk_size", self.chunk_size)):
            if value is not None:
                check_count(name, value)
        if self.executor is not None and not isinstance(self.executor, Executor):
            raise TypeError(
                f"executor: expected a concurrent.futures.Executor, got {_kind(self.executor)}"
            )
        if self.store is not None:
            local_path("store", self.store)
        check_dtype(self.dtype)
        if self.tolerance is not None:
            _check_tolerance(self.tolerance, policy)
        if self.reference is not None:
            check_like(self.reference, weights, "reference", "the model's parameters")
            if policy == "interpolated":
                raise ValueError(
                    "reference: has no running statistics, got batchnorm='interpolated'"
                )
        for name in ("training", "shortcuts"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}")

    @property
    def depends_on_batches(self) -> bool:
        """Whether batch norm measures the batches of the evaluation."""
        return self.batchnorm not in ("frozen", "interpolated")


def check_population(value: Any, total: int, used: int) -> float:
    """Return the size of the population, at least as large as the number of samples used."""
    if value is None:
        return float(total)
    if not isinstance(value, Real) or not float(value) >= used:
        raise ValueError(f"population: expected at least the {used} samples, got {value!r}")
    return float(value)


def check_points(points: ArrayLike | None, total: int) -> NDArray[np.int64]:
    """Return indices of points, sorted, each once; all of them for ``None``."""
    if points is None:
        return np.arange(total)
    indices = np.asarray(points)
    if indices.ndim != 1 or indices.size == 0 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"points: expected a non-empty one-dimensional array of indices, got {points!r}"
        )
    if indices.min() < 0 or indices.max() >= total:
        raise ValueError(
            f"points: expected indices from 0 to {total - 1}, "
            f"got {indices.min()} to {indices.max()}"
        )
    return np.unique(indices).astype(np.int64)


def _check_method(method: Any, policy: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    if method == "vmap" and policy == "reestimated":
        raise ValueError("method: batchnorm='reestimated' needs 'loop' or 'auto', got 'vmap'")


def _check_tolerance(value: Any, policy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
        raise ValueError(f"tolerance: expected a number above 0, got {value!r}")
    if policy == "batch":
        raise ValueError(
            "tolerance: takes more and more samples in batches of its own, on which the result "
            "depends with batchnorm='batch': give samples= instead"
        )


def _kind(value: Any) -> str:
    return type(value).__name__
