"""Sliders for readers: HTML that works in a built page, on Colab and in Jupyter, with no kernel.

Each function returns a ``Widget``, which a notebook shows; what its sliders choose from is inside
it. Only ``live`` and ``live_drawing`` need a kernel: they compute anew.
"""

from landscape_lib.widgets.drawing import drawing, live_drawing
from landscape_lib.widgets.frames import frames, live
from landscape_lib.widgets.html import Widget
from landscape_lib.widgets.paths import paths
from landscape_lib.widgets.sights import sights
from landscape_lib.widgets.surface import surface
from landscape_lib.widgets.walk import walk

__all__ = [
    "Widget",
    "drawing",
    "frames",
    "live",
    "live_drawing",
    "paths",
    "sights",
    "surface",
    "walk",
]
