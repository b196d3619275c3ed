"""Maps of the loss as pictures: bands of colour, and hatching where there is no value."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from landscape_lib.widgets.html import Numbers, coordinate, data_uri, shown, small_png


@dataclass(frozen=True)
class Bands:
    """The bands of a map: n + 1 increasing `edges`, and n `colours` (n, 4) between them."""

    edges: Numbers
    colours: Numbers

    def data(self) -> dict[str, list[float | str] | list[str]]:
        """Return what the script draws the colour bar from."""
        colours = [matplotlib.colors.to_hex(colour) for colour in self.colours]
        return {"edges": shown(self.edges), "colours": colours}


# More cannot be told apart, and take a drawing library minutes.
MOST_BANDS = 256


Levels = int | str | Sequence[float] | Numbers


def divide(name: str, grid: Numbers, levels: Levels = "log", cmap: str = "viridis") -> Bands:
    """Divide the values of a map into bands.

    Args:
        name: of the argument that is the map, for the messages.
        grid: the map, its axes in any order.
        levels: the number of bands, "log" for 24 of equal ratio, or their edges.
        cmap: a matplotlib colour map.

    Raises:
        ValueError: a map without two values on each side or without a finite one, logarithmic
            levels for negative losses, bad edges.
    """
    edges = _edges(name, grid, levels)
    return Bands(edges, matplotlib.colormaps[cmap](np.linspace(0, 1, len(edges) - 1)))


def contours(grid: Numbers, bands: Bands, ratio: float) -> str:
    """Draw a map (ny, nx) with lines between the bands; row 0 is the lowest, ratio height/width."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the same picture, whatever style the notebook has set
        figure = Figure(figsize=(7, 7 * ratio), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        figure.set_facecolor("#e4e4e4")
        # Behind the map: it shows where the map has no value.
        hatching = Rectangle((0, 0), 1, 1, hatch="//", fill=False, edgecolor="#999999")
        axes.add_patch(hatching).set(transform=axes.transAxes, zorder=0)
        finite = np.ma.masked_invalid(grid)
        ends = np.concatenate([bands.colours[:1], bands.colours, bands.colours[-1:]])
        axes.contourf(finite, levels=bands.edges, colors=ends, extend="both")
        axes.contour(finite, levels=bands.edges, colors="white", linewidths=0.6, alpha=0.4)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return data_uri(small_png(Image.open(buffer)))


def cells(grid: Numbers, bands: Bands) -> str:
    """Draw a map (ny, nx) with a pixel for each cell, row 0 at the top; no value is transparent."""
    none = len(bands.colours)
    band = np.searchsorted(bands.edges, np.nan_to_num(grid), side="right") - 1
    pixels: NDArray[np.uint8] = np.where(np.isfinite(grid), np.clip(band, 0, none - 1), none)
    image = Image.fromarray(pixels.astype(np.uint8))
    image.putpalette(np.round(bands.colours[:, :3] * 255).astype(np.uint8).tobytes() + bytes(3))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, transparency=none)
    return data_uri(buffer.getvalue())


def _edges(name: str, grid: Numbers, levels: Levels) -> Numbers:
    """Return the edges of the bands, increasing."""
    finite = grid[np.isfinite(grid)]
    if min(grid.shape) < 2 or finite.size == 0:
        raise ValueError(
            f"{name}: given shape {grid.shape} with {finite.size} finite values, expected at "
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
        if not 1 <= levels <= MOST_BANDS:
            raise ValueError(f"levels: given {levels}, expected from 1 to {MOST_BANDS} bands")
        return np.linspace(low, high if high > low else low + 1, levels + 1)
    return coordinate("levels", levels)
