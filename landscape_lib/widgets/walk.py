"""A walk along a line through weight space, with what the network predicts on the way."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from landscape_lib.widgets.cards import cards
from landscape_lib.widgets.html import (
    TABLE,
    Numbers,
    Widget,
    array,
    assemble,
    coordinate,
    lines,
    nearest,
    picture,
    shown,
    slider,
    text,
    written,
)


def walk(
    alphas: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    images: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[int],
    classes: Sequence[str],
    alt: str,
    xlabel: str = "α",
    ylabel: str = "loss",
    bands: Mapping[str, ArrayLike] | None = None,
    marks: Mapping[str, float] | None = None,
    log: bool = False,
    caption: str | None = None,
    start: float = 0.0,
) -> Widget:
    """Walk along a line through weight space and see what the network predicts on the way.

    Args:
        alphas: where the line was evaluated, (K,), increasing.
        curves: for each name (six at most) the values (K,) to draw over `alphas`.
        images: (M, height, width) or (M, height, width, 3), from 0 (black) to 1.
        probabilities: the network's class probabilities (K, M, C), from 0 to 1; NaN is shown as
            no prediction.
        labels: the true class of each image, (M,), from 0 to C - 1.
        classes: names of the C classes.
        alt: what the curves show, for readers who do not see them.
        xlabel: name of the coordinate.
        ylabel: name of what the curves show.
        bands: for some of the curves the half-width (K,) of a band, such as one standard error.
        marks: names of places on the line, such as {"untrained": 0, "trained": 1}.
        log: whether the vertical axis is logarithmic.
        caption: a line below the picture.
        start: the walk starts at the point of `alphas` nearest to this.

    Raises:
        TypeError: something else where numbers, a text or a mapping is expected.
        ValueError: an empty or wrongly shaped argument, `alphas` that do not increase, brightness
            or probability outside [0, 1], a label without a class, a negative half-width, curves
            without a finite value (a positive one if `log`).
    """
    line = coordinate("alphas", alphas)
    values = {
        name: array(f"curves[{name!r}]", curve, line.shape)
        for name, curve in lines("curves", curves).items()
    }
    widths = {
        name: array(f"bands[{name!r}]", band, line.shape)
        for name, band in (lines("bands", bands) if bands else {}).items()
    }
    for name, band in widths.items():
        if name not in values or (band < 0).any():
            raise ValueError(f"bands[{name!r}]: expected the name of a curve and no negative width")
    seen = cards(images, probabilities, labels, classes, line.shape)
    data = {
        "alphas": shown(line, 6),
        "xlabel": text("xlabel", xlabel),
        "ylabel": text("ylabel", ylabel),
        "log": log,
        "range": _range(values, widths, log),
        "marks": [[float(at), text("marks", name)] for name, at in (marks or {}).items()],
        "curves": [
            {"name": name, "values": shown(curve), "band": shown(widths[name], 2)}
            if name in widths
            else {"name": name, "values": shown(curve)}
            for name, curve in values.items()
        ],
        **seen.data,
        # In thousandths; the predicted class comes from the numbers before they were rounded.
        "probabilities": np.round(np.nan_to_num(seen.probabilities) * 1000).astype(int).tolist(),
        "guesses": seen.guesses.tolist(),
    }
    control = slider("xlabel", (xlabel, written(line)), nearest(line, start), play=True)
    below = f'{TABLE}<div class="lw-cards"></div>'
    return assemble("walk", picture(alt), [control], below, data, caption)


def _range(values: Mapping[str, Numbers], widths: Mapping[str, Numbers], log: bool) -> list[float]:
    """Return where the vertical axis begins and ends."""
    # Where a band is unknown, the value itself counts.
    wide = {name: np.nan_to_num(band) for name, band in widths.items()}
    sides = [values[name] + sign * wide.get(name, 0) for name in values for sign in (-1, 1)]
    together = np.concatenate(sides)
    together = together[np.isfinite(together) & ((together > 0) | (not log))]
    if together.size == 0:
        raise ValueError(f"curves: expected at least one finite{' positive' * log} value")
    low, high = float(together.min()), float(together.max())
    if log:
        return [low / 1.2, high * 1.2]
    margin = 0.05 * (high - low) or 0.5
    return [low - margin, high + margin]
