"""A walk along a line through weight space, with what the network predicts on the way."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from landscape_lib.widget_html import (
    TABLE,
    Numbers,
    Widget,
    array,
    assemble,
    data_uri,
    drawing,
    lines,
    photo_png,
    shown,
    slider,
    text,
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
    line = array("alphas", alphas, (None,))
    if len(line) < 2 or not (np.isfinite(line).all() and (np.diff(line) > 0).all()):
        raise ValueError(
            f"alphas: given {alphas!r}, expected at least two finite numbers, increasing"
        )
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
    names = [text("classes", name) for name in classes]
    pixels = _unit("images", images, (None,) * np.ndim(images))
    if pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (3,)):
        raise ValueError(f"images: given shape {pixels.shape}, expected (M, h, w) or (M, h, w, 3)")
    shape = (len(line), len(pixels), len(names))
    chances = _unit("probabilities", probabilities, shape, missing=True)
    truth = array("labels", labels, (len(pixels),))
    if not np.isin(truth, np.arange(len(names))).all():
        raise ValueError(f"labels: given {labels}, expected whole numbers below {len(names)}")
    missing = np.isnan(chances).any(axis=2)
    guesses = np.where(missing, -1, np.nan_to_num(chances).argmax(axis=2))
    step = next((d for d in range(5) if np.allclose(line, np.round(line, d), rtol=0)), 5)
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
        "classes": names,
        "images": [
            {
                "label": int(label),
                "alt": f"image {m}: {names[int(label)]}",
                "src": data_uri(photo_png(image)),
            }
            for m, (label, image) in enumerate(zip(truth, pixels, strict=True), start=1)
        ],
        # In thousandths; the predicted class comes from the numbers before they were rounded.
        "probabilities": np.round(np.nan_to_num(chances) * 1000).astype(int).tolist(),
        "guesses": guesses.tolist(),
    }
    places = [f"{alpha:.{step}f}".replace("-", "−") for alpha in line]
    nearest = int(np.abs(line - start).argmin())
    control = slider("xlabel", (xlabel, places), nearest, play=True)
    below = f'{TABLE}<div class="lw-cards"></div>'
    return assemble("walk", drawing(alt), [control], below, data, caption)


def _unit(
    name: str, given: ArrayLike, expected: Sequence[int | None], missing: bool = False
) -> Numbers:
    """Check an array of numbers from 0 to 1, with NaN only where some may be missing."""
    numbers = array(name, given, expected)
    if not (((numbers >= 0) & (numbers <= 1)) | (missing & np.isnan(numbers))).all():
        raise ValueError(
            f"{name}: given {numbers.min():g} to {numbers.max():g}, expected numbers from 0 to 1"
        )
    return numbers


def _range(values: Mapping[str, Numbers], widths: Mapping[str, Numbers], log: bool) -> list[float]:
    """Return where the vertical axis begins and ends."""
    sides = [values[name] + sign * widths.get(name, 0) for name in values for sign in (-1, 1)]
    together = np.concatenate(sides)
    together = together[np.isfinite(together) & ((together > 0) | (not log))]
    if together.size == 0:
        raise ValueError(f"curves: expected at least one finite{' positive' * log} value")
    low, high = float(together.min()), float(together.max())
    if log:
        return [low / 1.2, high * 1.2]
    margin = 0.05 * (high - low) or 0.5
    return [low - margin, high + margin]
