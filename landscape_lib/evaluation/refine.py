"""Adaptive resolution: measure a grid only where interpolation is not good enough."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from landscape_lib import runtime
from landscape_lib.evaluation.batches import is_whole, read_batches
from landscape_lib.evaluation.evaluate import evaluate
from landscape_lib.slices import Line, Plane

# Halving the spacing divides the error of interpolation by 4 where the surface has a bounded second
# derivative, by 16 where it is smoother. So a point missed by four times the acceptable error has
# good neighbours.
GAIN = 4.0

# A prediction and a value that were measured on some samples differ by chance: by three standard
# errors of their difference in one of 400 cases.
NOISE = 3 * 2**0.5


def refine(
    model: nn.Module,
    slice: Line | Plane,
    data: Any,
    *,
    error: float,
    variable: str = "loss",
    coarsest: int = 8,
    **options: Any,
) -> xr.Dataset:
    """Evaluate a line or plane on a coarse grid, and finer only where it matters.

    Every ``coarsest``-th grid point is measured first. Then the spacing is halved again and again.
    Halfway points are predicted by cubic interpolation; they are measured where a neighbour was
    mispredicted one level before by so much that halving the spacing will not bring the error below
    ``error``, and interpolated elsewhere. At last a random tenth as many points as were measured,
    from those that were not, is measured to tell how large the interpolation error is. If one of
    them was mispredicted by more than ``error`` (and more than its standard error explains), all
    points around it are measured, and others are drawn, until all that were drawn last are
    predicted well enough.

    Args:
        model: as for ``evaluate``.
        slice: a line or plane; its axes are the finest grid.
        data: as for ``evaluate``; read once.
        error: largest acceptable error of prediction, in units of ``variable``.
        variable: name of the measure that is watched.
        coarsest: spacing of the first grid, in steps of the finest; a power of 2.
        options: passed on to ``evaluate``. With ``store`` the work can be resumed; with
            ``tolerance`` each point also takes only as many samples as it needs.

    Returns:
        Like the result of ``evaluate``: measured where ``measured`` is true, interpolated
        elsewhere (standard errors are NaN there). Attributes: ``refine_measured`` (number of
        points) and ``refine_error`` (the largest interpolation error on the points that were drawn
        last; NaN if everything was measured).

    Raises:
        TypeError: ``slice`` has no grid, or ``points`` are given.
        ValueError: ``error`` is not above 0, ``coarsest`` is no power of 2, or unknown
            ``variable``.
    """
    if not isinstance(slice, (Line, Plane)):
        raise TypeError(f"slice: expected a Line or a Plane, got {type(slice).__name__}")
    _check(error, coarsest, variable, options)
    if not is_whole(data):  # read once: an iterator ends, and a loader may shuffle or augment
        with runtime.isolated_random_state(options.get("seed", 0)):
            data = [(batch.x, batch.y) for batch in read_batches(data, None, 1, 0)[0]]
    measured = np.zeros(slice.shape, dtype=bool)
    surprising = np.ones(slice.shape, dtype=bool)
    spacing, dataset = coarsest, None
    while spacing >= 1:
        level = _grid_mask(slice.shape, spacing)
        if not (level & ~measured).any():  # an axis shorter than the spacing has but two points
            spacing //= 2
            continue
        wanted = level & ~measured & surprising
        if dataset is None:
            predicted = np.full(slice.shape, np.nan)
        else:
            predicted = _interpolated(dataset[variable].values, measured, spacing * 2)
        if wanted.any():
            fresh = evaluate(model, slice, data, points=np.flatnonzero(wanted), **options)
            if variable not in fresh:
                names = [name for name in fresh if f"{name}_se" in fresh]
                raise ValueError(f"variable: expected one of {names}, got {variable!r}")
            dataset = fresh if dataset is None else _merge(dataset, fresh, wanted)
        assert dataset is not None
        measured |= wanted
        with np.errstate(invalid="ignore"):
            missed = np.abs(dataset[variable].values - predicted)
        # NaN counts as a surprise: where nothing was predicted, or a value is not finite.
        surprising = _near(wanted & ~(missed <= GAIN * error), spacing)
        spacing //= 2
    assert dataset is not None
    rest = slice, data, options
    dataset, largest = _check_around(model, *rest, dataset, measured, variable, error, coarsest)
    for name in dataset.data_vars:
        if not str(name).endswith("_se") and name != "samples":
            dataset[name] = (slice.dims, _interpolated(dataset[name].values, measured, 1))
    dataset["measured"] = (slice.dims, measured)
    return dataset.assign_attrs(refine_measured=int(measured.sum()), refine_error=largest)


def _check(error: Any, coarsest: Any, variable: Any, options: dict[str, Any]) -> None:
    if isinstance(error, bool) or not isinstance(error, Real) or not float(error) > 0:
        raise ValueError(f"error: expected a number above 0, got {error!r}")
    if not isinstance(coarsest, Integral) or coarsest < 1 or coarsest & (coarsest - 1):
        raise ValueError(f"coarsest: expected a power of 2, got {coarsest!r}")
    if "points" in options:
        raise TypeError("points: refine chooses them itself, got some")
    metrics = options.get("metrics")
    names = ["loss", *(metrics if isinstance(metrics, Mapping) else ["accuracy"])]
    if options.get("reference") is not None:
        names += [f"{name}_difference" for name in names]
    if variable not in names:
        raise ValueError(f"variable: expected one of {names}, got {variable!r}")


def _axis(length: int, spacing: int) -> NDArray[np.int64]:
    """Return every ``spacing``-th index, and the last one."""
    return np.unique(np.append(np.arange(0, length, spacing), length - 1))


def _grid_mask(shape: tuple[int, ...], spacing: int) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[np.ix_(*(_axis(length, spacing) for length in shape))] = True
    return mask


def _near(points: NDArray[np.bool_], spacing: int) -> NDArray[np.bool_]:
    """Return the grid points within ``spacing`` steps of one of ``points`` along each axis."""
    near = np.zeros_like(points)
    for place in np.argwhere(points):
        near[tuple(np.s_[max(0, i - spacing) : i + spacing + 1] for i in place)] = True
    return near


def _interpolated(
    values: NDArray[np.float64], measured: NDArray[np.bool_], spacing: int
) -> NDArray[np.float64]:
    """Interpolate from the grid of a spacing, its holes from the coarser one, to all points."""
    from scipy.interpolate import make_interp_spline  # slow to import, and only needed here

    axes = [_axis(length, spacing) for length in values.shape]
    known = values[np.ix_(*axes)]
    holes = ~measured[np.ix_(*axes)]
    if holes.any():
        coarser = _interpolated(values, measured, spacing * 2)
        known = np.where(holes, coarser[np.ix_(*axes)], known)
    # Along one axis after the other, which is exact. A cubic would carry one NaN everywhere.
    degree = 3 if np.isfinite(known).all() else 1
    for k, axis in enumerate(axes):
        order = min(degree, len(axis) - 1)
        along = make_interp_spline(axis, known, order, axis=k, check_finite=False)
        known = along(np.arange(values.shape[k]))
    return np.where(measured, values, known)


def _merge(old: xr.Dataset, fresh: xr.Dataset, wanted: NDArray[np.bool_]) -> xr.Dataset:
    """Take the wanted points from the fresh dataset."""
    spent = {name: old.attrs[name] + fresh.attrs[name] for name in ("seconds", "flops")}
    merged = {
        name: (old[name].dims, np.where(wanted, fresh[name].values, old[name].values))
        for name in old.data_vars
    }
    return old.assign(merged).assign_attrs(fresh.attrs | spent)


def _check_around(
    model: nn.Module,
    slice: Line | Plane,
    data: Any,
    options: dict[str, Any],
    dataset: xr.Dataset,
    measured: NDArray[np.bool_],
    variable: str,
    error: float,
    coarsest: int,
) -> tuple[xr.Dataset, float]:
    """Measure points drawn at random, and all around those that were mispredicted."""
    source = np.random.default_rng(0)

    def measure(wanted: NDArray[np.bool_]) -> None:
        nonlocal dataset
        fresh = evaluate(model, slice, data, points=np.flatnonzero(wanted), **options)
        dataset = _merge(dataset, fresh, wanted)
        measured[wanted] = True

    while (rest := np.flatnonzero(~measured)).size:
        guess = _interpolated(dataset[variable].values, measured, 1)
        drawn = source.choice(rest, min(rest.size, max(8, int(measured.sum()) // 10)), False)
        wanted = np.zeros(slice.shape, dtype=bool)
        wanted.flat[drawn] = True
        measure(wanted)
        found = dataset[variable].values
        with np.errstate(invalid="ignore"):
            missed = np.where(found == guess, 0.0, np.abs(found - guess))[wanted]
        noise = np.nan_to_num(dataset[f"{variable}_se"].values[wanted])
        mispredicted = wanted.copy()
        mispredicted[wanted] = ~(missed <= error + NOISE * noise)  # NaN is
        if not mispredicted.any():
            return dataset, float(missed.max())
        around = _near(mispredicted, max(1, coarsest // 2)) & ~measured
        if around.any():
            measure(around)
    return dataset, np.nan
