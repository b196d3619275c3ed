"""How well a map of a slice shows its pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from landscape_lib.mpo import patterns
from landscape_lib.mpo.patterns import Pattern
from landscape_lib.mpo.settings import TAU, check_tau
from landscape_lib.slices import FloatArray


@dataclass(frozen=True)
class Quality:
    """Means over the LOW and the HIGH cells of a map, and its likeness to the pattern.

    Attributes:
        low_loss: mean loss of the LOW cells.
        high_loss: mean loss of the HIGH cells.
        low_accuracy: mean accuracy of the LOW cells; NaN if the map has none.
        high_accuracy: mean accuracy of the HIGH cells; NaN if the map has none.
        gap: ``low_accuracy - high_accuracy``, the paper's measure (MPO paper, figure 4a).
        loss_gap: ``high_loss - low_loss``.
        iou: of the cells that the map shows LOW and those that the pattern has LOW, the number in
            both over the number in either (intersection over union).
        threshold: above this accuracy, or below this loss, the map shows a cell LOW.
        loss_iou: the same of the map that shows a cell LOW if its loss is below tau.
        cells: number of cells counted.
        trained: all of this over the trained cells alone: the insides of large areas, which are
            easy, flatter the picture. ``None`` if these are the cells counted.
    """

    low_loss: float
    high_loss: float
    low_accuracy: float
    high_accuracy: float
    gap: float
    loss_gap: float
    iou: float
    threshold: float
    loss_iou: float
    cells: int
    trained: Quality | None = None


def quality(
    surface: xr.Dataset,
    pattern: ArrayLike,
    *,
    variable: str = "accuracy",
    threshold: float | None = None,
    tau: float = TAU,
    pruned: bool = True,
) -> Quality:
    """Compare a map with the pattern that it was fitted to.

    Args:
        surface: ``fitted.map(...)``, or what ``evaluate`` gives for the plane or slice of a fit.
        pattern: as given to ``fit``.
        variable: ``"accuracy"`` or ``"loss"``: which of the two is compared with the threshold.
        threshold: of that variable; by default the midpoint between its LOW and its HIGH mean.
        tau: below this loss ``loss_iou`` takes a cell for LOW; as given to ``fit``.
        pruned: count the cells that pruning leaves out of training as well.

    Raises:
        ValueError: the map has other cells than the pattern, has no such variable, or values that
            are NaN; ``threshold`` is not a finite number.
    """
    low = patterns.from_drawing(pattern)
    if threshold is not None:
        _check_threshold(threshold)
    check_tau(tau)
    if variable not in ("accuracy", "loss"):
        raise ValueError(f"variable: expected 'accuracy' or 'loss', got {variable!r}")
    maps = {
        name: cells_of(surface[name], low.shape) for name in ("loss", "accuracy") if name in surface
    }
    if variable not in maps:
        raise ValueError(f"variable: expected one of {sorted(maps)}, got {variable!r}")
    trained = patterns.trained(low) != 0
    counted = np.ones(low.shape, dtype=bool) if pruned else trained
    missing = int(np.isnan(maps[variable][counted]).sum())
    if missing:
        raise ValueError(f"surface: expected {variable} at every cell, {missing} are NaN")

    def compare(counted: Pattern) -> Quality:
        means = {
            name: [_mean(values[counted & (low == kind)]) for kind in (True, False)]
            for name, values in maps.items()
        }
        at = sum(means[variable]) / 2 if threshold is None else threshold
        shown = maps[variable] > at if variable == "accuracy" else maps[variable] < at
        low_loss, high_loss = means["loss"]
        low_accuracy, high_accuracy = means.get("accuracy", (math.nan, math.nan))
        return Quality(
            low_loss=low_loss,
            high_loss=high_loss,
            low_accuracy=low_accuracy,
            high_accuracy=high_accuracy,
            gap=low_accuracy - high_accuracy,
            loss_gap=high_loss - low_loss,
            iou=_overlap(shown & counted, low & counted),
            threshold=float(at),
            loss_iou=_overlap((maps["loss"] < tau) & counted, low & counted),
            cells=int(counted.sum()),
        )

    found = compare(counted)
    return replace(found, trained=compare(trained)) if pruned else found


def _overlap(first: Pattern, second: Pattern) -> float:
    """Return intersection over union."""
    return float((first & second).sum() / (first | second).sum())


def cells_of(values: xr.DataArray, shape: tuple[int, ...]) -> FloatArray:
    """Return a map in the shape of its pattern: rows are beta, columns alpha.

    Args:
        values: over ``("alpha", "beta")`` in any order, over ``("point",)``, or over the axes of
            the pattern.
        shape: of the pattern.

    Raises:
        ValueError: the map has other cells.
    """
    if set(values.dims) == {"alpha", "beta"}:
        values = values.transpose("beta", "alpha")
    elif values.dims == ("point",) and values.size == np.prod(shape):
        return np.asarray(values).reshape(shape)
    if values.shape != shape:
        raise ValueError(
            f"surface: expected a map of the pattern's {' x '.join(map(str, shape))} cells, "
            f"got dimensions {dict(values.sizes)}"
        )
    return np.asarray(values)


def _mean(values: FloatArray) -> float:
    return float(np.mean(values)) if values.size else math.nan


def _check_threshold(value: Any) -> None:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"threshold: expected a finite number, got {value!r}")
