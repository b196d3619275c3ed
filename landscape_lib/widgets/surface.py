"""A loss surface that turns: a height map, its contours below it and an optimiser's path on it."""

from html import escape

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from landscape_lib.widgets.html import (
    Numbers,
    Slider,
    Widget,
    array,
    assemble,
    coordinate,
    picture,
    shown,
    text,
)
from landscape_lib.widgets.map import cells, divide

_LARGEST = 128  # points along a side: more are slow to turn, and no finer on a screen
_LEVELS = 4094  # heights travel as whole numbers, 0 to this; the next one is "no value"
_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# As in surface.js: from -180° to 180° and from 10° to 90°.
_TURNS, _TILTS = np.arange(-180, 181, 2), np.arange(10, 91)
_BANDS = 12  # of colour; contours lie between them


def surface(
    z: xr.Dataset | ArrayLike,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    *,
    alt: str,
    path: ArrayLike | None = None,
    log: bool = False,
    variable: str = "loss",
    xlabel: str = "α",
    ylabel: str = "β",
    caption: str | None = None,
    start: tuple[float, float] = (-30.0, 35.0),
) -> Widget:
    """Turn a surface with two sliders, or by dragging it.

    The value under the pointer is shown, to one part in 4,000 of the range. Points that are not
    finite are gaps, and counted below the picture.

    Args:
        z: what ``evaluate`` returns for a ``Plane``, with dimensions "alpha" and "beta"; or heights
            (X, Y), 2 to 128 a side.
        x: the first coordinate of an array of heights, (X,), increasing.
        y: the second one, (Y,), increasing.
        alt: what the surface shows, for readers who do not see it.
        path: points (x, y) of an optimiser, (steps, 2). Where it leaves the surface there is a gap.
        log: draw the logarithm; no height may be 0 or less.
        variable: of the dataset; of an array, what its heights are called.
        xlabel: name of the first coordinate.
        ylabel: name of the second coordinate.
        caption: a line below the picture.
        start: azimuth and elevation shown first, in degrees.

    Raises:
        TypeError: something else where numbers or a text are expected; coordinates beside a dataset
            or none beside an array.
        ValueError: a dataset of other dimensions or without the variable; an empty, wrongly shaped
            or too large argument; coordinates that do not increase; no finite height; a height of
            0 or less with `log`; angles outside [-180, 180] and [10, 90].
    """
    heights, sides = _heights(z, x, y, text("variable", variable))
    finite = heights[np.isfinite(heights)]
    if log and finite.size and finite.min() <= 0:
        raise ValueError(f"log: given heights from {finite.min():g}, expected all above 0")
    points = np.empty((0, 2)) if path is None else array("path", path, (None, 2))
    angles = array("start", start, (2,))
    if not (abs(angles[0]) <= 180 and 10 <= angles[1] <= 90):
        raise ValueError(
            f"start: given {start}, expected azimuth in [-180, 180] and elevation in [10, 90]"
        )
    levels: int | Numbers = _BANDS
    if log and finite.size:  # a flat surface lies at the bottom of the bands
        low, high = finite.min(), finite.max()
        levels = np.geomspace(low, high if high > low else 2 * low, _BANDS + 1)
    colours = divide("z", heights, levels)
    names = [text("xlabel", xlabel), text("ylabel", ylabel)]
    data = {
        "x": shown(sides[0], 5),
        "y": shown(sides[1], 5),
        "z": _packed(heights, colours.edges, log),
        "log": log,
        "path": [shown(point, 5) for point in points],
        "names": names,
        "label": variable,
        **colours.data(),
        "edges": shown(colours.edges, 9),  # the script reads values off them
        "sliders": [{"label": "azimuth"}, {"label": "elevation"}],  # the script knows their values
    }
    controls = [
        Slider(label, [f"{v}°".replace("-", "−") for v in values], at, play=False)
        for label, values, at in (
            ("azimuth", _TURNS, int(np.abs(_TURNS - angles[0]).argmin())),
            ("elevation", _TILTS, int(np.abs(_TILTS - angles[1]).argmin())),
        )
    ]
    still = cells(heights.T[::-1], colours)
    spans = [
        f"{n} from {s[0]:g} to {s[-1]:g}".replace("-", "−")
        for n, s in zip(names, sides, strict=True)
    ]
    above = picture(
        alt,
        f'<img class="lw-still dark-light" src="{still}" alt="{escape(alt)}">'
        f"<p>Seen from above: {escape(spans[0])} to the right, {escape(spans[1])} upwards.</p>",
    )
    above += f'<p class="lw-note lw-readout">{escape(_ends(heights, sides, names, variable))}</p>'
    notes = _notes(heights, points, sides)
    above += f'<p class="lw-note">{" ".join(notes)}</p>' if notes else ""
    return assemble("surface", above, controls, "", data, caption)


def _heights(
    z: xr.Dataset | ArrayLike, x: ArrayLike | None, y: ArrayLike | None, variable: str
) -> tuple[Numbers, tuple[Numbers, Numbers]]:
    """Check heights (X, Y) and their coordinates, from a dataset or from arrays."""
    if isinstance(z, xr.Dataset):
        if x is not None or y is not None:
            raise TypeError("x, y: given beside a dataset, expected none: it has coordinates")
        if variable not in z or set(z[variable].dims) != {"alpha", "beta"}:
            found = {str(name): z[name].dims for name in z}
            raise ValueError(
                f"z: given a dataset with {found}, expected {variable!r} of alpha and beta"
            )
        z = z.sortby(["alpha", "beta"])
        x, y, z = z["alpha"].values, z["beta"].values, z[variable].transpose("alpha", "beta").values
    elif x is None or y is None:
        raise TypeError("x, y: given none, expected the coordinates of the heights")
    sides = coordinate("x", x), coordinate("y", y)
    heights = array("z", z, (len(sides[0]), len(sides[1])))
    if max(heights.shape) > _LARGEST:
        raise ValueError(f"z: given shape {heights.shape}, expected at most {_LARGEST} a side")
    return heights, sides


def _packed(heights: Numbers, edges: Numbers, log: bool) -> str:
    """Write heights, as whole numbers between the lowest and the highest edge, in text.

    A smooth surface is nearly known from the heights before each point and on the line before it,
    a + b - c; the small rest takes one sign, other heights take three. The script reads it back.
    """
    scale = np.log if log else np.asarray
    low, high = scale(edges[[0, -1]])
    finite = np.isfinite(heights)
    parts = (scale(np.where(finite, heights, edges[0])) - low) / (high - low)
    codes = np.where(finite, np.round(parts * _LEVELS), _LEVELS + 1).astype(int)
    flat, width = codes.ravel().tolist(), codes.shape[1]
    signs = []
    for k, code in enumerate(flat):
        a, b, c = (flat[k - back] if k >= back else 0 for back in (1, width, width + 1))
        rest = code - (a + b - c) + 32
        signs.append(
            _SIGNS[rest] if 0 <= rest < 64 else "~" + _SIGNS[code // 64] + _SIGNS[code % 64]
        )
    return "".join(signs)


def _ends(heights: Numbers, sides: tuple[Numbers, Numbers], names: list[str], label: str) -> str:
    """Say where the surface is lowest and where it is highest."""
    finite = np.ma.masked_invalid(heights)
    said = []
    for word, at in (("Lowest", finite.argmin()), ("highest", finite.argmax())):
        i, j = np.unravel_index(int(at), heights.shape)
        place = f"{names[0]} {sides[0][i]:.3g}, {names[1]} {sides[1][j]:.3g}"
        said.append(f"{word} {label} {heights[i, j]:.3g} at {place}")
    return "; ".join(said).replace("-", "−") + "."


def _notes(heights: Numbers, points: Numbers, sides: tuple[Numbers, Numbers]) -> list[str]:
    """Say what the marks mean, and what is missing."""
    notes = []
    if len(points):
        notes.append("Line: the path, from the hollow to the full dot.")
        low, high = np.array([[side[0], side[-1]] for side in sides]).T
        outside = int((~((points >= low) & (points <= high)).all(axis=1)).sum())
        if outside:
            notes.append(f"{outside} of its {len(points)} points lie outside the picture.")
    lost = int((~np.isfinite(heights)).sum())
    if lost:
        notes.append(f"Gaps: {lost} of {heights.size} points have no finite value.")
    return notes
