"""How well a map of a slice shows its pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from landscape_lib.mpo import patterns


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
        cells: number of cells counted.
    """

    low_loss: float
    high_loss: float
    low_accuracy: float
    high_accuracy: float
    gap: float
    loss_gap: float
    iou: float
    threshold: float
    cells: int


def quality(
    surface: xr.Dataset,
    pattern: ArrayLike,
    *,
    variable: str = "accuracy",
    threshold: float | None = None,
    pruned: bool = True,
) -> Quality:
    """Compare a map with the pattern that it was fitted to.

    Args:
        surface: what ``evaluate`` gives for the plane or the slice of a fit.
        pattern: as given to ``fit``.
        variable: ``"accuracy"`` or ``"loss"``: which of the two is compared with the threshold.
        threshold: of that variable; by default the midpoint between its LOW and its HIGH mean.
        pruned: count the cells that pruning leaves out of training as well.

    Raises:
        ValueError: the map has other cells than the pattern, has no such variable, or values that
            are NaN; ``threshold`` is not a finite number.
    """
    low = patterns.from_drawing(pattern)
    if threshold is not None:
        _check_threshold(threshold)
    if variable not in ("accuracy", "loss"):
        raise ValueError(f"variable: expected 'accuracy' or 'loss', got {variable!r}")
    maps = {
        name: cells_of(surface[name], low.shape) for name in ("loss", "accuracy") if name in surface
    }
    if variable not in maps:
        raise ValueError(f"variable: expected one of {sorted(maps)}, got {variable!r}")
    counted = np.ones(low.shape, dtype=bool) if pruned else patterns.prune(low) != 0
    missing = int(np.isnan(maps[variable][counted]).sum())
    if missing:
        raise ValueError(f"surface: expected {variable} at every cell, {missing} are NaN")
    means = {
        (name, kind): _mean(values[counted & (low == kind)])
        for name, values in maps.items()
        for kind in (True, False)
    }
    if threshold is None:
        threshold = (means[variable, True] + means[variable, False]) / 2
    shown = maps[variable] > threshold if variable == "accuracy" else maps[variable] < threshold
    either = (shown | low) & counted
    low_accuracy, high_accuracy = (
        means.get(("accuracy", kind), math.nan) for kind in (True, False)
    )
    return Quality(
        low_loss=means["loss", True],
        high_loss=means["loss", False],
        low_accuracy=low_accuracy,
        high_accuracy=high_accuracy,
        gap=low_accuracy - high_accuracy,
        loss_gap=means["loss", False] - means["loss", True],
        iou=float((shown & low & counted).sum() / either.sum()),
        threshold=float(threshold),
        cells=int(counted.sum()),
    )


def cells_of(values: xr.DataArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a map in the shape of its pattern: rows are beta, columns alpha.

    Args:
        values: over ``("alpha", "beta")`` or over ``("point",)``.
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


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.mean(values)) if values.size else math.nan


def _check_threshold(value: Any) -> None:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"threshold: expected a finite number, got {value!r}")
