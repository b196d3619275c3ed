"""Optimisers' paths on a map of the loss, with one slider over the step size and one over time."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from landscape_lib.widget_html import (
    TABLE,
    Numbers,
    Widget,
    array,
    assemble,
    data_uri,
    drawing,
    lines,
    shown,
    slider,
    small_png,
    text,
)

_UNITS = 10_000  # points travel as whole numbers, 0 to this from edge to edge of the map


def paths(
    background: ArrayLike,
    paths: Mapping[str, Sequence[ArrayLike]],
    *,
    extent: Sequence[float],
    xlabel: str,
    ylabel: str,
    choice: tuple[str, Sequence[object]],
    alt: str,
    step_label: str = "step",
    losses: Mapping[str, Sequence[ArrayLike]] | None = None,
    loss_label: str = "loss",
    minimum: ArrayLike | None = None,
    levels: int | str | Sequence[float] = 24,
    cmap: str = "viridis",
    caption: str | None = None,
    start: int = 0,
) -> Widget:
    """Draw optimisers' paths on a map of the loss: one slider sets the choice, one the time.

    A path that leaves the map or stops being finite says so in the legend.

    Args:
        background: the loss (ny, nx) at evenly spaced points from edge to edge of `extent`; row 0
            lies at the lowest y. What is not finite is hatched.
        paths: for each optimiser (six at most) and each value of `choice` an array (steps + 1, 2)
            of points (x, y). The shorter ones stay at their end.
        extent: (x from, x to, y from, y to) of the map.
        xlabel: name of the horizontal axis.
        ylabel: name of the vertical axis.
        choice: (label, values) of the first slider, such as ("step size", [0.01, 0.1]).
        alt: what the picture shows, for readers who do not see it.
        step_label: name of a step in time.
        losses: the loss at each point: arrays (steps + 1,), nested as `paths` is.
        loss_label: name of the loss.
        minimum: a point (x, y), or several (n, 2), to mark with a star.
        levels: the number of colour bands, "log" for 24 of equal ratio, or their edges.
        cmap: a matplotlib colour map.
        caption: a line below the picture.
        start: the index of the value of `choice` shown first.

    Raises:
        TypeError: something else where numbers, a text or a mapping is expected.
        ValueError: an empty or wrongly shaped argument, a map without a finite value, logarithmic
            levels for negative losses, a start outside the values.
    """
    grid = array("background", background, (None, None))
    box = array("extent", extent, (4,))
    if not (np.isfinite(box).all() and box[0] < box[1] and box[2] < box[3]):
        raise ValueError(f"extent: given {extent}, expected finite x from < x to, y from < y to")
    corner, size = box[[0, 2]], box[[1, 3]] - box[[0, 2]]
    control = slider("choice", choice, start)
    points = _runs("paths", paths, len(control.values))
    numbers = {} if losses is None else _runs("losses", losses, len(control.values), points)
    stars = [] if minimum is None else array("minimum", np.atleast_2d(minimum), (None, 2)).tolist()
    edges = _edges(grid, levels)
    colours = matplotlib.colormaps[cmap](np.linspace(0, 1, len(edges) - 1))
    steps = max(len(run) for runs in points.values() for run in runs)
    data = {
        "picture": _map(grid, edges, colours, size),
        "ratio": float(np.clip(size[1] / size[0], 0.5, 1)),
        "extent": box.tolist(),
        "xlabel": text("xlabel", xlabel),
        "ylabel": text("ylabel", ylabel),
        "loss_label": text("loss_label", loss_label),
        "edges": shown(edges),
        "colours": [matplotlib.colors.to_hex(colour) for colour in colours],
        "minimum": stars,
        "names": list(points),
        "points": [[_on_map((run - corner) / size) for run in runs] for runs in points.values()],
        "losses": [[shown(run) for run in runs] for runs in numbers.values()],
    }
    time = slider("step_label", (step_label, range(steps)), steps - 1, play=True)
    notes = ["★ minimum"] * bool(stars)
    notes += ["Hatched: no finite value"] * (not np.isfinite(grid).all())
    below = TABLE + "".join(f'<p class="lw-note">{note}.</p>' for note in notes)
    return assemble("paths", drawing(alt), [control, time], below, data, caption)


def _runs(
    name: str, given: Any, count: int, like: Mapping[str, list[Numbers]] | None = None
) -> dict[str, list[Numbers]]:
    """Check paths, or the losses along them, and return their arrays."""
    checked = lines(name, given)
    if like is not None and set(checked) != set(like):
        raise ValueError(f"{name}: given {list(checked)}, expected {list(like)} as in paths")
    for key, runs in checked.items():
        if len(runs) != count:
            raise ValueError(f"{name}[{key!r}]: given {len(runs)} arrays, expected {count}")
    return {
        key: [
            array(f"{name}[{key!r}][{k}]", run, (None, 2) if like is None else (len(like[key][k]),))
            for k, run in enumerate(checked[key])
        ]
        for key in (like or checked)
    }


def _on_map(points: Numbers) -> list[int | None]:
    """Flatten (n, 2) points in units of the map; None where a coordinate is not finite."""
    return [
        round(min(max(v * _UNITS, -1e9), 1e9)) if np.isfinite(v) else None for v in points.ravel()
    ]


def _edges(grid: Numbers, levels: int | str | Sequence[float]) -> Numbers:
    """Return the edges of the colour bands, increasing."""
    finite = grid[np.isfinite(grid)]
    if min(grid.shape) < 2 or finite.size == 0:
        raise ValueError(
            f"background: given shape {grid.shape} with {finite.size} finite values, expected at "
            "least (2, 2) and one finite value"
        )
    low, high = float(finite.min()), float(finite.max())
    if isinstance(levels, str):
        if levels != "log" or low < 0 or high == 0:
            raise ValueError(
                f"levels: given {levels!r} for losses from {low:g} to {high:g}, expected a number, "
                'edges, or "log" with losses that are not negative'
            )
        low = float(finite[finite > 0].min())
        return np.geomspace(low, max(high, 2 * low), 25)
    if isinstance(levels, int):
        if levels < 1:
            raise ValueError(f"levels: given {levels}, expected at least one band")
        return np.linspace(low, high if high > low else low + 1, levels + 1)
    edges = array("levels", levels, (None,))
    if len(edges) < 2 or not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError(f"levels: given {levels}, expected at least two increasing edges")
    return edges


def _map(grid: Numbers, edges: Numbers, colours: Numbers, size: Numbers) -> str:
    """Draw the map of the loss from edge to edge of a picture."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the same picture, whatever style the notebook has set
        figure = Figure(figsize=(7, 7 * float(np.clip(size[1] / size[0], 0.5, 1))), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        figure.set_facecolor("#e4e4e4")
        # Behind the map: it shows where the map has no value.
        hatching = Rectangle((0, 0), 1, 1, hatch="//", fill=False, edgecolor="#999999")
        axes.add_patch(hatching).set(transform=axes.transAxes, zorder=0)
        finite = np.ma.masked_invalid(grid)
        ends = np.concatenate([colours[:1], colours, colours[-1:]])
        axes.contourf(finite, levels=edges, colors=ends, extend="both")
        axes.contour(finite, levels=edges, colors="white", linewidths=0.6, alpha=0.4)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return data_uri(small_png(Image.open(buffer)))
