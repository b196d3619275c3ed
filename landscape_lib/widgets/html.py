"""What `widgets` are made of: checked arguments, pictures and numbers as text, sliders.

The style and the script that all widgets share are in `widgets.html`, next to this file; what only
one kind of them needs is in the file of its name.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from landscape_lib.svg import address

Numbers = NDArray[np.float64]

_LINE_STYLES = 6  # as many as the script can tell apart
TABLE = '<div class="lw-table-place"></div>'  # where the script puts the legend
_PLAY = (
    '<button type="button" class="lw-play" aria-pressed="false" aria-label="play {}">'
    '<svg width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">'
    '<path d="M3 1L13 7L3 13z"/><path d="M2 1h3.5v12H2zM8.5 1H12v12H8.5z"/></svg></button>'
)


@dataclass(frozen=True)
class Widget:
    """Self-contained HTML: a picture, its sliders and what they choose from.

    Attributes:
        kind: the function of `widgets` that made it.
        key: a hash of its content: the same content, the same key.
        html: picture, sliders, data, style and script, in ASCII.
    """

    kind: str
    key: str
    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<{self.kind} widget {self.key}>"


@dataclass(frozen=True)
class Slider:
    """A labelled slider over `values`, with a button that plays them as a film where `play`."""

    label: str
    values: list[str]
    start: int
    play: bool

    def html(self) -> str:
        """Return the native slider with its label and the value shown."""
        name, now = escape(self.label), escape(self.values[self.start])
        keys = "data-lm-suppress-shortcuts"  # or JupyterLab takes the arrow keys for itself
        return (
            f'<div class="lw-slider">{_PLAY.format(name) if self.play else ""}'
            f'<label><span class="lw-name">{name}</span><input type="range" min="0" step="1" '
            f'max="{len(self.values) - 1}" value="{self.start}" aria-valuetext="{now}" '
            f'autocomplete="off" {keys}></label><output aria-live="off">{now}</output></div>'
        )


def assemble(
    kind: str,
    above: str,
    sliders: Sequence[Slider],
    below: str,
    data: dict[str, Any],
    caption: str | None,
) -> Widget:
    """Put a widget together from the HTML above and below its sliders and the script's data."""
    data.setdefault("sliders", [{"label": s.label, "values": s.values} for s in sliders])
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    rows = "".join(slider.html() for slider in sliders)
    body = (
        above
        + (f'<div class="lw-sliders">{rows}</div>' if sliders else "")
        + below
        + ("" if caption is None else f'<p class="lw-caption">{escape(caption)}</p>')
        + '<p class="lw-live" aria-live="polite"></p>'
        "<noscript><p>This figure needs JavaScript to change.</p></noscript>"
        f'<script type="application/json">{packed}</script>'
    )
    key = hashlib.sha256(f"{kind}{body}".encode()).hexdigest()[:12]
    html = (
        f'<div class="landscape-widget" data-kind="{kind}" data-key="{key}">{body}</div>\n'
        + _style_and_script(kind).replace("WIDGET_KEY", key)
    )
    return Widget(kind, key, html.encode("ascii", "xmlcharrefreplace").decode("ascii"))


@cache
def _style_and_script(kind: str) -> str:
    """Read the style and the script of one kind of widget, without indentation and comments."""
    shared, own = (
        (Path(__file__).parent / name).read_text(encoding="ascii")
        for name in ("widgets.html", f"{kind}.js")
    )
    return re.sub(r"\n\s*(//[^\n]*)?(?=\n)|(?<=\n)\s+", "", shared.replace("THE_VIEW", own))


def picture(alt: str, still: str = "") -> str:
    """Return the place that the script draws into; `still` is the HTML shown without a script."""
    label = escape(text("alt", alt))
    return f'<div class="lw-picture" role="img" aria-label="{label}">{still}</div>'


def frame(name: str, picture: Any, alt: str, width: int, shown: bool) -> str:
    """Return one of many pictures: a Figure, PNG bytes, or a string of SVG or HTML."""
    look = f'class="lw-frame dark-light{" lw-shown" if shown else ""}"'
    if isinstance(picture, str):
        if picture.startswith("<?xml"):  # as an image, an SVG has the colour scheme of the page
            source = address("image/svg+xml", picture)
            picture = (
                f'<img class="dark-light" alt="{escape(alt)}" '
                'style="width:100%;height:auto;padding:0!important;'
                f'background:none!important" src="{source}">'
            )
        return f'<div {look} role="img" aria-label="{escape(alt)}">{picture}</div>'
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, dpi=width / picture.get_figwidth(), facecolor="white")
        plt.close(picture)
        picture = small_png(Image.open(buffer))
    if not isinstance(picture, bytes):
        raise TypeError(
            f"{name}: given {type(picture).__name__}, expected a matplotlib Figure, the bytes of a "
            "PNG, or a string of SVG or HTML"
        )
    if not picture.startswith(b"\x89PNG"):
        raise ValueError(f"{name}: given bytes that begin with {picture[:4]!r}, expected a PNG")
    return f'<img {look} src="{data_uri(picture)}" alt="{escape(alt)}">'


def small_png(image: Image.Image) -> bytes:
    """Encode a drawing as a PNG of 256 colours, about a third of the size."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def photo_png(pixels: Numbers) -> bytes:
    """Encode an image (h, w) or (h, w, 3) with values from 0 to 1 as a PNG, exactly."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Return a PNG as an address that contains it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def shown(values: Iterable[float], digits: int = 4) -> list[float | str]:
    """Round to so many significant digits; what is not finite becomes the words to show."""
    words = {float("inf"): "∞", float("-inf"): "−∞"}
    return [
        float(f"{v:.{digits}g}") if np.isfinite(v) else words.get(v, "not a number")
        for v in map(float, values)
    ]


def text(name: str, given: object) -> str:
    """Check that an argument is a text that is not empty."""
    if not isinstance(given, str):
        raise TypeError(f"{name}: given {type(given).__name__}, expected a text")
    if not given.strip():
        raise ValueError(f"{name}: given an empty text, expected words")
    return given


def array(name: str, given: ArrayLike, expected: Sequence[int | None]) -> Numbers:
    """Check that an argument is numbers of the expected shape, where None stands for any size."""
    shape = f"({', '.join('any' if n is None else str(n) for n in expected)})"
    try:
        numbers = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: given {type(given).__name__} that is not an array of numbers, "
            f"expected numbers of shape {shape}"
        ) from error
    matches = [n in (None, m) for n, m in zip(expected, numbers.shape, strict=False)]
    if numbers.ndim != len(expected) or not all(matches) or numbers.size == 0:
        raise ValueError(f"{name}: given shape {numbers.shape}, expected {shape}, not empty")
    return numbers


def coordinate(name: str, given: ArrayLike) -> Numbers:
    """Check that an argument is the values of a coordinate: at least two, finite, increasing."""
    values = array(name, given, (None,))
    if len(values) < 2 or not (np.isfinite(values).all() and (np.diff(values) > 0).all()):
        raise ValueError(
            f"{name}: given {given!r}, expected at least two finite numbers, increasing"
        )
    return values


def written(values: Numbers) -> list[str]:
    """Write the values of a coordinate with as many decimals as tell them apart, five at most."""
    step = next((d for d in range(5) if np.allclose(values, np.round(values, d), rtol=0)), 5)
    return [f"{value:.{step}f}".replace("-", "−") for value in values]


def nearest(values: Numbers, wanted: float) -> int:
    """Return the index of the value of a coordinate that is nearest to a number."""
    return int(np.abs(values - wanted).argmin())


def slider(name: str, pair: Any, start: int = 0, play: bool = False) -> Slider:
    """Check a pair (label, values) and make a slider of it."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or isinstance(pair[1], str):
        raise TypeError(f"{name}: given {pair!r}, expected a pair (label, values)")
    label, values = pair
    words = [v if isinstance(v, str) else f"{v:g}".replace("-", "−") for v in values]
    if not words:
        raise ValueError(f"{name}: given no values, expected at least one")
    if not 0 <= start < len(words):
        raise ValueError(f"start: given {start}, expected an index from 0 to {len(words) - 1}")
    return Slider(text(name, label), words, start, play)


def lines(name: str, given: Any) -> dict[str, Any]:
    """Check a mapping from the names of lines to what they show."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: given {type(given).__name__}, expected a mapping from names")
    if not 1 <= len(given) <= _LINE_STYLES:
        raise ValueError(f"{name}: given {len(given)} lines, expected 1 to {_LINE_STYLES}")
    return {text(name, key): value for key, value in given.items()}
