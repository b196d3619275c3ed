"""Figures: one look, one colour map for loss, and honest marks where a value is not finite.

To look at a surface in ParaView, write what ``evaluate`` returns for a ``Plane`` to a file,
``surface.loss.to_netcdf("surface.nc")``, and open it with the reader "NetCDF Files generic and CF
conventions". Equal steps give image data; the filters "Warp By Scalar" and "Contour" make a height
map and its contours of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from landscape_lib import svg
from landscape_lib.svg import downloads as downloads

LOSS_COLORS = "viridis"

# Okabe and Ito's palette: distinct for every common form of colour blindness, on white and on
# dark grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def use_style() -> None:
    """Set matplotlib's defaults to the look of the book.

    Notebooks show figures as SVG, whose text, axes and ground have the colours of a light or a dark
    page. Text is at least 9 px high on a phone where a figure is up to 6.4 inches wide.
    """
    svg.use()
    plt.rcParams.update(
        {
            "figure.figsize": (6.0, 3.4),
            "figure.dpi": 130,
            "figure.facecolor": svg.GROUND,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.facecolor": "none",
            "axes.grid": True,
            "grid.alpha": 0.15,
            "grid.color": svg.INK,
            "text.color": svg.INK,
            "axes.labelcolor": svg.INK,
            "axes.edgecolor": svg.INK,
            "xtick.color": svg.INK,
            "ytick.color": svg.INK,
            "image.cmap": LOSS_COLORS,
            # On the ground, so that lines behind do not cross the words.
            "legend.facecolor": svg.GROUND,
            "legend.edgecolor": "none",
            "lines.linewidth": 1.8,
            "font.size": 12,
            "svg.hashsalt": "landscape",  # the same figure, the same text
        }
    )


def curve(
    dataset: xr.Dataset,
    variable: str = "loss",
    *,
    ax: Axes | None = None,
    band: float = 2.0,
    **line: Any,
) -> Axes:
    """Draw a variable along a line, with a band of ``band`` standard errors.

    A point that is not finite leaves a gap in the curve and a cross at the lower edge. Points are
    joined in the order of the coordinate.

    Args:
        dataset: one-dimensional, as from ``evaluate`` of a ``Line``.
        variable: name of the variable; ``<variable>_se`` gives the band if it is there.
        ax: where to draw; the current axes by default.
        band: half-width of the band in standard errors.
        line: passed on to ``Axes.plot`` (label, color, linestyle, ...).

    Raises:
        ValueError: the variable has other than one dimension.
    """
    if dataset[variable].ndim != 1:
        raise ValueError(
            f"variable: expected one dimension, got {dataset[variable].dims} of {variable!r}"
        )
    ax = ax or plt.gca()
    (dim,) = dataset[variable].dims
    dataset = dataset.sortby(dim)
    values, x = dataset[variable], dataset[dim].values
    (drawn,) = ax.plot(x, values, **line)
    if f"{variable}_se" in dataset:
        half = band * dataset[f"{variable}_se"].values
        ax.fill_between(
            x, values - half, values + half, color=drawn.get_color(), alpha=0.25, linewidth=0
        )
    lost = ~np.isfinite(values.values)
    if lost.any():
        ax.plot(
            x[lost],
            np.zeros(lost.sum()),
            "x",
            color=drawn.get_color(),
            transform=ax.get_xaxis_transform(),
            clip_on=False,
        )
    ax.set_xlabel({"alpha": "α"}.get(str(dim), str(dim)))
    ax.set_ylabel(variable.replace("_", " "))
    return ax


def heat(
    dataset: xr.Dataset,
    variable: str = "loss",
    *,
    ax: Axes | None = None,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    levels: int = 12,
    colorbar: bool = True,
) -> QuadMesh:
    """Draw a variable over a plane as colours with contour lines, alpha to the right.

    Cells that are not finite are left out of the colours and hatched.

    Args:
        dataset: dimensions ``("alpha", "beta")``, as from ``evaluate`` of a ``Plane``.
        variable: name of the variable.
        ax: where to draw; the current axes by default.
        log: colour by the logarithm; values must be above 0.
        limits: lowest and highest colour value; those of the data by default.
        levels: number of contour lines between the limits; 0 draws none.
        colorbar: whether to draw one.

    Returns:
        The coloured mesh, for example for another colour bar.

    Raises:
        ValueError: the variable has other dimensions; ``limits`` are not two ascending numbers;
            a value or limit to colour by its logarithm is not above 0.
    """
    if set(dataset[variable].dims) != {"alpha", "beta"}:
        raise ValueError(
            f"variable: expected dimensions ('alpha', 'beta'), got {dataset[variable].dims} "
            f"of {variable!r}"
        )
    dataset = dataset.sortby(["alpha", "beta"])
    values = dataset[variable].transpose("beta", "alpha").values
    finite = np.ma.masked_invalid(values)
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.count() else (1.0, 1.0)
    low, high = limits or (lowest, highest)
    numbers = all(isinstance(limit, (int, float)) for limit in (low, high))
    if limits is not None and not (numbers and low < high):
        raise ValueError(f"limits: expected (lowest, highest), ascending, got {limits}")
    if log and low <= 0:
        raise ValueError(
            f"log: expected values above 0, or limits=(lowest, highest) above 0, got {low:g}"
        )
    ax = ax or plt.gca()
    norm = LogNorm(low, high) if log else Normalize(low, high)
    alpha, beta = dataset["alpha"].values, dataset["beta"].values
    ax.set_facecolor("#d9d9d9")
    ax.patch.set_hatch("///")
    # Values below the limits take the lowest colour, also those that have no logarithm.
    colors = np.ma.maximum(finite, low) if log else finite
    mesh = ax.pcolormesh(alpha, beta, colors, norm=norm, cmap=LOSS_COLORS, shading="nearest")
    space = np.geomspace if log else np.linspace
    steps = space(low, high, levels + 2)[1:-1]
    steps = steps[(steps > lowest) & (steps < highest)]
    if len(steps) and min(values.shape) > 1:
        ax.contour(alpha, beta, finite, levels=steps, colors="white", linewidths=0.5)
    ax.grid(False)
    ax.set_xlabel("α")
    ax.set_ylabel("β")
    if colorbar:
        ax.figure.colorbar(mesh, ax=ax, label=variable.replace("_", " "))
    return mesh


def gallery(
    surfaces: Mapping[str, xr.Dataset],
    variable: str = "loss",
    *,
    columns: int = 3,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw maps of fitted planes side by side, in the same colours.

    Beta grows downwards, as the rows of a picture do, so that the pictures are upright.

    Args:
        surfaces: for each title a map as for :func:`heat`.
        variable: name of the variable.
        columns: maps in a row.
        log: colour by the logarithm; values must be above 0.
        limits: lowest and highest colour value; those of all maps together by default.

    Raises:
        ValueError: no maps; or as :func:`heat`.
    """
    if not surfaces or columns < 1:
        raise ValueError(
            f"surfaces, columns: expected at least one map and one column, got {len(surfaces)} and "
            f"{columns}"
        )
    every = np.concatenate([surface[variable].values.ravel() for surface in surfaces.values()])
    finite = every[np.isfinite(every)]
    if limits is None and np.unique(finite).size > 1:
        limits = (float(finite.min()), float(finite.max()))
    columns = min(columns, len(surfaces))
    rows = -(-len(surfaces) // columns)
    size = (2.2 * columns + 0.8, 2.3 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex="col", sharey="row", squeeze=False
    )
    for ax in axes.flat[len(surfaces) :]:
        ax.set_axis_off()
    for ax, (title, surface) in zip(axes.flat, surfaces.items(), strict=False):
        mesh = heat(surface, variable, ax=ax, log=log, limits=limits, levels=0, colorbar=False)
        ax.set(title=title, aspect="equal")
        ax.set_ylim(sorted(ax.get_ylim(), reverse=True))
        ax.label_outer()
    figure.colorbar(mesh, ax=axes, label=variable.replace("_", " "), shrink=min(1.0, 1.6 / rows))
    return figure
