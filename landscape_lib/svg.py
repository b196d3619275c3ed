"""Figures as SVG that follow the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib import backend_bases, cbook
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import Collection
from matplotlib.figure import Figure

# Colours that a page replaces: of text and axes, and of the ground. Pure black is replaced as well.
INK, GROUND = "#1f2328", "#fefefe"
_DARK = {"ink": "#ced6dd", "ground": "#121212"}  # those of the book
_HEAVY = 500  # shapes, from which a picture of them takes less room

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
            # Surfaces in three dimensions know their shapes only when they are drawn.
            in_space = hasattr(shapes, "do_3d_projection")
            if in_space or max(len(shapes.get_paths()), len(shapes.get_offsets())) > _HEAVY:  # type: ignore[arg-type]
                shapes.set_rasterized(True)
        buffer = io.StringIO()
        restore = settings.get("bbox_inches_restore")
        metadata = {"Date": None, "Creator": None, **(settings.get("metadata") or {})}
        super().print_svg(buffer, bbox_inches_restore=restore, metadata=metadata)
        text = re.sub(r"<svg\b[^>]*>", lambda tag: tag[0] + _STYLE, buffer.getvalue(), count=1)
        with cbook.open_file_cm(filename, "w", encoding="utf-8") as file:
            file.write(text if cbook.file_requires_unicode(file) else text.encode())


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
