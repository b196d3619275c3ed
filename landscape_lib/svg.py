"""Figures as SVG that follow the colours of the page, light or dark, and can be saved from it."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any
from urllib.parse import quote

import matplotlib
import matplotlib.pyplot as plt
import xarray as xr
from matplotlib import backend_bases, cbook
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import Collection, QuadMesh
from matplotlib.figure import Figure

from landscape_lib import page

# Colours that a page replaces: of text and axes, and of the ground. Pure black is replaced as well.
INK, GROUND = "#1f2328", "#fefefe"
_DARK = {"ink": "#ced6dd", "ground": "#121212"}  # those of the book
_HEAVY = 500  # shapes, from which a picture of them takes less room
_LARGEST = 1_000_000  # bytes that a figure's downloads may add to a notebook
_PLAIN = " ,;:/?=+$@!*()'[]{}|^~`"  # signs that browsers take in an address as they are

# An SVG in a page has the page's scheme. Styles on the shapes themselves give way to "!important"
# only; matplotlib writes no style for what it fills with black.
_STYLE = f"""<style>
@media (prefers-color-scheme: dark) {{
svg {{ fill: {_DARK["ink"]} }}
[style*="fill: {INK}"] {{ fill: {_DARK["ink"]} !important }}
[style*="stroke: {INK}"], [style*="stroke: #000000"] {{ stroke: {_DARK["ink"]} !important }}
[style*="fill: {GROUND}"] {{ fill: {_DARK["ground"]} !important }}
}}
</style>"""


class PageCanvas(FigureCanvasSVG):
    """Writes SVG with a second set of colours, for dark pages, and many shapes as one picture."""

    def print_svg(self, filename: Any, **settings: Any) -> None:
        """Write the figure to a path or an open file; see ``FigureCanvasSVG.print_svg``."""
        for shapes in self.figure.findobj(Collection):
            # Surfaces in three dimensions know their shapes only when they are drawn; between the
            # cells of a map the ground would shine through.
            always = hasattr(shapes, "do_3d_projection") or isinstance(shapes, QuadMesh)
            if always or max(len(shapes.get_paths()), len(shapes.get_offsets())) > _HEAVY:  # type: ignore[arg-type]
                shapes.set_rasterized(True)
        buffer = io.StringIO()
        restore = settings.get("bbox_inches_restore")
        metadata = {"Date": None, "Creator": None, **(settings.get("metadata") or {})}
        super().print_svg(buffer, bbox_inches_restore=restore, metadata=metadata)
        text = re.sub(r"<svg\b[^>]*>", lambda tag: tag[0] + _STYLE, buffer.getvalue(), count=1)
        text = _shorter(text)
        with cbook.open_file_cm(filename, "w", encoding="utf-8") as file:
            file.write(text if cbook.file_requires_unicode(file) else text.encode())


def _shorter(text: str) -> str:
    """Leave out of an SVG what a reader does not see: comments, names, less than 0.01 points."""
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<!DOCTYPE.*?>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<=\s[xy])="(-?\d+\.\d\d)\d+"', r'="\1"', text)

    def path(found: re.Match[str]) -> str:
        return re.sub(r"\s*\n|(?<=[A-Z]) |(?<=\.\d\d)\d+", "", found[0])

    text = re.sub(r'(?<=\sd=)"[^"]*"', path, text)
    # Double quotes and ends of lines would take three signs each in an address.
    text = re.sub(r"""="([^"']*)\"""", r"='\1'", text)
    text = re.sub(r"(?<=<g) id='[\w.]+_\d+'", "", text)  # names of groups, which nothing refers to
    return re.sub(r">\s*\n\s*<", "><", re.sub(r"\s*\n\s*", "\n", text))


def use() -> None:
    """Make this the way to write SVG, and SVG the way in which notebooks show figures."""
    backend_bases.register_backend("svg", PageCanvas, "Scalable Vector Graphics")
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance(parent=shell).figure_formats = {"svg"}


def text_of(figure: Figure) -> str:
    """Return a figure as the text of an SVG."""
    buffer = io.BytesIO()
    PageCanvas(figure).print_figure(buffer, format="svg", bbox_inches="tight")
    return buffer.getvalue().decode()


def address(kind: str, content: str) -> str:
    """Return a text of a kind, such as "text/csv", as an address in a page, not much longer."""
    return f"data:{kind};charset=utf-8,{quote(content, safe=_PLAIN)}"


def _show_now(shown: object) -> None:
    """Show what a notebook would show at the end of its cell; elsewhere, do nothing."""
    if isinstance(shown, Figure):
        if "inline" not in matplotlib.get_backend():
            return
        if not plt.fignum_exists(getattr(shown, "number", 0)):
            return
        plt.close(shown)
    from IPython import display, get_ipython

    if get_ipython() is not None:
        display.display(shown)


def _tables(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Name a table for each set of dimensions, or a surface and a path would be multiplied."""
    together: dict[Any, list[Any]] = {}
    for variable, values in dataset.data_vars.items():
        together.setdefault(values.dims, []).append(variable)
    tables = [dataset[names].to_dataframe().reset_index() for names in together.values()]
    if len(tables) == 1:
        return {name: tables[0]}
    first = [re.sub(r"\W+", "_", str(names[0])) for names in together.values()]
    return {f"{name}_{one}": table for one, table in zip(first, tables, strict=True)}


def downloads(
    figure: object, dataset: xr.Dataset | xr.DataArray, *, name: str = "figure"
) -> page.Shown:
    """Fold a figure's data as CSV and the figure as SVG away, to be saved by a click.

    In a notebook what is still to be shown is shown first, so that the fold stands below.

    Args:
        figure: as it was drawn; or a widget, of which there are only the data to save.
        dataset: what it shows, a column for each coordinate and variable, a file for each set of
            dimensions.
        name: of the files, without ending.

    Raises:
        TypeError: ``dataset`` is none.
        ValueError: files so large that the notebook would be slow: 1 MB together.
    """
    if isinstance(dataset, xr.DataArray):
        dataset = dataset.to_dataset(name=dataset.name or "value")
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"dataset: expected one of xarray, got {type(dataset).__name__}")
    tables = _tables(dataset, name)
    files = {
        f"{named}.csv": ("text/csv", table.to_csv(index=False, float_format="%.6g"))
        for named, table in tables.items()
    }
    if isinstance(figure, Figure):
        files[f"{name}.svg"] = ("image/svg+xml", text_of(figure))
    sizes = {file: len(content.encode()) for file, (_, content) in files.items()}
    if sum(sizes.values()) > _LARGEST:
        raise ValueError(
            f"figure, dataset: expected {_LARGEST:,} bytes at most, got {sizes}: give only the "
            "variables that the figure shows"
        )
    links = [
        f'<li><a download="{escape(file)}" href="{address(kind, content)}">'
        f"{escape(file)}</a> ({max(1, sizes[file] // 1000)} kB)</li>"
        for file, (kind, content) in files.items()
    ]
    _show_now(figure)
    text = "; ".join(f"{len(t)} rows of {', '.join(map(str, t.columns))}" for t in tables.values())
    what = " and the figure" if isinstance(figure, Figure) else ""
    return page.fold(f"The data{what}, to download", page.Shown(f"<ul>{''.join(links)}</ul>", text))
