"""Optimisers' paths on a map of the loss, with one slider over the step size and one over time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from landscape_lib.widgets.html import (
    TABLE,
    Numbers,
    Widget,
    array,
    assemble,
    lines,
    picture,
    shown,
    slider,
    text,
)
from landscape_lib.widgets.map import contours, divide

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
    ratio = float(np.clip(size[1] / size[0], 0.5, 1))
    colours = divide("background", grid, levels, cmap)
    steps = max(len(run) for runs in points.values() for run in runs)
    data = {
        "picture": contours(grid, colours, ratio),
        "ratio": ratio,
        "extent": box.tolist(),
        "xlabel": text("xlabel", xlabel),
        "ylabel": text("ylabel", ylabel),
        "loss_label": text("loss_label", loss_label),
        **colours.data(),
        "minimum": stars,
        "names": list(points),
        "points": [[_on_map((run - corner) / size) for run in runs] for runs in points.values()],
        "losses": [[shown(run) for run in runs] for runs in numbers.values()],
    }
    time = slider("step_label", (step_label, range(steps)), steps - 1, play=True)
    notes = ["★ minimum"] * bool(stars)
    notes += ["Hatched: no finite value"] * (not np.isfinite(grid).all())
    below = TABLE + "".join(f'<p class="lw-note">{note}.</p>' for note in notes)
    return assemble("paths", picture(alt), [control, time], below, data, caption)


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
