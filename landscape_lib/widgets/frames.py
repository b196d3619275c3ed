"""One of many pictures, chosen by sliders; and a function that a kernel calls anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from landscape_lib.widgets.html import Widget, assemble, frame, slider, text


def frames(
    pictures: Sequence[Any],
    *,
    sliders: Sequence[tuple[str, Sequence[object]]],
    alt: str | Callable[..., str] | Sequence[Any],
    caption: str | None = None,
    start: Sequence[int] | None = None,
    play: bool = False,
) -> Widget:
    """Show one of many pictures, chosen by one or two sliders.

    Args:
        pictures: one for each value of the slider; with two sliders a list of lists, where
            `pictures[i][j]` is for value i of the first and j of the second. A picture is a
            matplotlib Figure (drawn on a white card, then closed), the bytes of a PNG, or a string
            of SVG or HTML. What ``plots.svg.text_of`` returns follows the colours of the page.
        sliders: one or two pairs (label, values to show).
        alt: what a picture shows, for readers who do not see it: one text for all, one for each
            picture (nested as the pictures are), or a function of the sliders' values.
        caption: a line below the picture.
        start: the index of the value shown first, for each slider; 0 unless given.
        play: whether the last slider has a button that plays it as a film.

    Raises:
        TypeError: a picture, a slider or a text of another kind.
        ValueError: other than one or two sliders, a number of pictures or texts that does not
            match the sliders' values, an empty text, a start outside the values.
    """
    if len(sliders) not in (1, 2):
        raise ValueError(f"sliders: given {len(sliders)}, expected one or two (label, values)")
    first = [0] * len(sliders) if start is None else list(start)
    if len(first) != len(sliders):
        raise ValueError(f"start: given {start}, expected one index for each slider")
    controls = [
        slider(f"sliders[{k}]", pair, first[k], play and k == len(sliders) - 1)
        for k, pair in enumerate(sliders)
    ]
    sizes = [len(control.values) for control in controls]
    flat = _flat("pictures", pictures, sizes)
    if callable(alt):
        texts = [alt(*values) for values in product(*(values for _, values in sliders))]
    else:
        texts = [alt] * len(flat) if isinstance(alt, str) else _flat("alt", alt, sizes)
    texts = [text("alt", words) for words in texts]
    at_start = int(np.ravel_multi_index(first, sizes))
    # The more pictures, the fewer pixels each: the page stays small.
    width = int(np.clip(960 * (16 / len(flat)) ** 0.5, 600, 960))
    cards = [
        frame(f"pictures[{k}]", picture, texts[k], width, k == at_start)
        for k, picture in enumerate(flat)
    ]
    above = f'<div class="lw-picture lw-frames">{"".join(cards)}</div>'
    return assemble("frames", above, controls, "", {"alt": texts}, caption)


def live(function: Callable[..., object], **sliders: Any) -> Any:
    """Call a function anew whenever a slider moves; this needs a kernel and ipywidgets 7 or 8.

    Args:
        function: what to call; what it draws or prints is shown below the sliders.
        **sliders: for each of its arguments (min, max, step, default), or a list of options.

    Returns:
        An ipywidgets box to show.

    Raises:
        TypeError: a slider that is neither.
        ValueError: no sliders, or a default outside [min, max].
    """
    import ipywidgets

    if not sliders:
        raise ValueError(
            "sliders: given none, expected at least one name=(min, max, step, default)"
        )
    look = {"continuous_update": False, "style": {"description_width": "initial"}}
    controls: dict[str, Any] = {}
    for name, given in sliders.items():
        label = name.replace("_", " ")
        if isinstance(given, list) and given:
            controls[name] = ipywidgets.SelectionSlider(options=given, description=label, **look)
        elif isinstance(given, tuple) and len(given) == 4:
            low, high, step, default = given
            if not low <= default <= high:
                raise ValueError(f"{name}: given default {default}, expected {low} to {high}")
            whole = all(isinstance(number, int) for number in given)
            kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
            numbers = {"min": low, "max": high, "step": step, "value": default}
            form = {} if whole else {"readout_format": ".4g"}
            controls[name] = kind(**numbers, **form, description=label, **look)
        else:
            raise TypeError(
                f"{name}: given {given!r}, expected (min, max, step, default) or a list of options"
            )
    output = ipywidgets.interactive_output(function, controls)
    return ipywidgets.VBox([*controls.values(), output])


def _flat(name: str, given: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Return the pictures, or their texts, in the order of the sliders' values, checked."""
    rows = [given] if len(sizes) == 1 else given
    fits = isinstance(given, list | tuple) and len(given) == sizes[0]
    if not fits or any(not isinstance(r, list | tuple) or len(r) != sizes[-1] for r in rows):
        expected = " lists of ".join(map(str, sizes))
        raise ValueError(f"{name}: expected a list of {expected}, as the sliders have values")
    return [item for row in rows for item in row]
