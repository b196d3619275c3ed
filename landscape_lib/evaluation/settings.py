"""The arguments of an evaluation, each checked before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from landscape_lib.evaluation.batches import check_count
from landscape_lib.evaluation.batchnorm import check_policy
from landscape_lib.evaluation.precision import check_dtype
from landscape_lib.slices import Slice
from landscape_lib.weights import check_like, weights_of

METHODS = ("auto", "loop", "vmap")


def check_settings(model: nn.Module, slice: Any, settings: Mapping[str, Any]) -> None:
    """Raise an error that names the argument unless all settings are possible.

    Args:
        model: as for ``evaluate``.
        slice: as for ``evaluate``.
        settings: arguments of ``evaluate`` by name, those that need no data.
    """
    if not isinstance(slice, Slice):
        raise TypeError(f"slice: expected a Line, Plane or Slice, got {_kind(slice)}")
    weights, policy = weights_of(model), settings["batchnorm"]
    check_like(slice.origin, weights, "slice", "the model's parameters")
    check_policy(model, policy)
    _check_method(settings["method"], policy)
    for name in ("batch_size", "calibration_samples", "chunk_size"):
        if name == "calibration_samples" or settings[name] is not None:
            check_count(name, settings[name])
    executor, store, reference = (settings[name] for name in ("executor", "store", "reference"))
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(f"executor: expected a concurrent.futures.Executor, got {_kind(executor)}")
    if store is not None and not isinstance(store, (str, os.PathLike)):
        raise TypeError(f"store: expected the path of a file, got {_kind(store)}")
    check_dtype(settings["dtype"])
    if settings["tolerance"] is not None:
        _check_tolerance(settings["tolerance"], policy)
    if reference is not None:
        check_like(reference, weights, "reference", "the model's parameters")
        if policy == "interpolated":
            raise ValueError("reference: has no running statistics, got batchnorm='interpolated'")
    if not isinstance(settings["training"], bool):
        raise TypeError(f"training: expected True or False, got {settings['training']!r}")


def check_population(value: Any, used: int) -> float:
    """Return the size of the population, at least as large as the number of samples used."""
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
    if not isinstance(value, Real) or not float(value) > 0:
        raise ValueError(f"tolerance: expected a number above 0, got {value!r}")
    if policy == "batch":
        raise ValueError(
            "tolerance: takes more and more samples in batches of its own, on which the result "
            "depends with batchnorm='batch': give samples= instead"
        )


def _kind(value: Any) -> str:
    return type(value).__name__
