"""A plane that was fitted to a pattern, with what the network at each of its cells predicts."""

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape_lib.mpo import patterns
from landscape_lib.widgets.cards import cards, unit
from landscape_lib.widgets.html import (
    TABLE,
    Numbers,
    Widget,
    array,
    assemble,
    coordinate,
    nearest,
    picture,
    shown,
    slider,
    text,
    written,
)
from landscape_lib.widgets.map import cells, divide

_NO_GUESS = 255  # a class takes one byte


def sights(
    alphas: ArrayLike,
    betas: ArrayLike,
    loss: ArrayLike,
    *,
    accuracy: ArrayLike,
    images: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[int],
    classes: Sequence[str],
    alt: str,
    pattern: ArrayLike | None = None,
    xlabel: str = "α",
    ylabel: str = "β",
    caption: str | None = None,
    start: tuple[float, float] = (0.0, 0.0),
) -> Widget:
    """Go from cell to cell of a fitted plane and see what the network at each of them predicts.

    Colours show the logarithm of the loss. Beta runs downwards, as the rows of a pattern do.

    Args:
        alphas: where the plane was evaluated, (A,), increasing in equal steps.
        betas: the same for the other coordinate, (B,).
        loss: (A, B), not negative. What is not finite is hatched.
        accuracy: (A, B), from 0 to 1, NaN where it is not known.
        images: (M, height, width) or (M, height, width, 3), from 0 (black) to 1.
        probabilities: the networks' class probabilities (A, B, M, C), from 0 to 1; NaN is shown as
            no prediction. Only the predicted class and its probability in percent are kept.
        labels: the true class of each image, (M,), from 0 to C - 1.
        classes: names of the C classes, 255 at most.
        alt: what the map shows, for readers who do not see it.
        pattern: (B, A), rows downwards, as in ``patterns``: its LOW cells are outlined.
        xlabel: name of the first coordinate.
        ylabel: name of the second coordinate.
        caption: a line below the picture.
        start: the cell shown first is the one nearest to this alpha and beta.

    Raises:
        TypeError: something else where numbers or a text are expected.
        ValueError: an empty or wrongly shaped argument, coordinates that do not increase in equal
            steps, a negative loss or none above 0, accuracy, brightness or probability outside
            [0, 1], a label without a class, too many classes, a pattern of one class only.
    """
    sides = [_even("alphas", alphas), _even("betas", betas)]
    shape = (len(sides[0]), len(sides[1]))
    losses = array("loss", loss, shape)
    finite = losses[np.isfinite(losses)]
    if (finite < 0).any() or not (finite > 0).any():
        given = f"{finite.min():g} to {finite.max():g}" if finite.size else "no finite number"
        raise ValueError(
            f"loss: given {given}, expected no negative number and one above 0: its colours are "
            "logarithmic"
        )
    correct = unit("accuracy", accuracy, shape, missing=True)
    if len(classes) > _NO_GUESS:
        raise ValueError(f"classes: given {len(classes)}, expected {_NO_GUESS} at most")
    seen = cards(images, probabilities, labels, classes, shape)
    low = None if pattern is None else patterns.from_drawing(pattern)
    if low is not None and low.shape != shape[::-1]:
        raise ValueError(
            f"pattern: given shape {low.shape}, expected {shape[::-1]}: a row for each of betas "
            "and a column for each of alphas"
        )
    place = array("start", start, (2,))
    colours = divide("loss", losses)
    edges = [_edges(side) for side in sides]
    best = np.nan_to_num(seen.probabilities).max(axis=-1)
    data = {
        "picture": cells(losses.T, colours),
        "extent": shown([*edges[0], *edges[1]], 9),
        "ratio": float(np.clip(shape[1] / shape[0], 0.25, 2)),
        "places": [shown(side, 9) for side in sides],
        **colours.data(),
        "loss": shown(losses.ravel()),
        "accuracy": shown(correct.ravel()),
        "low": None if low is None else "".join("01"[int(cell)] for cell in low.T.flat),
        "outline": None if low is None else _outline(low),
        **seen.data,
        # Of each cell and image in turn, a byte each.
        "guesses": _bytes(np.where(seen.guesses < 0, _NO_GUESS, seen.guesses)),
        "percent": _bytes(np.round(best * 100)),
    }
    names = [text("xlabel", xlabel), text("ylabel", ylabel)]
    controls = [
        slider("xlabel, ylabel", (name, written(side)), nearest(side, wanted))
        for name, side, wanted in zip(names, sides, place, strict=True)
    ]
    notes = ["White line: the outline of the LOW cells of the pattern."] * (low is not None)
    notes += ["Hatched: no finite value."] * (finite.size < losses.size)
    above = picture(alt) + (f'<p class="lw-note">{" ".join(notes)}</p>' if notes else "")
    below = f'{TABLE}<div class="lw-cards"></div>'
    return assemble("sights", above, controls, below, data, caption)


def _even(name: str, given: ArrayLike) -> Numbers:
    """Check the values of a coordinate: they increase in equal steps."""
    values = coordinate(name, given)
    steps = np.diff(values)
    if not np.allclose(steps, steps.mean(), rtol=1e-3, atol=0):
        raise ValueError(
            f"{name}: given steps of {steps.min():g} to {steps.max():g}, expected equal steps"
        )
    return values


def _edges(values: Numbers) -> list[float]:
    """Return where the first cell begins and the last one ends."""
    half = (values[-1] - values[0]) / (len(values) - 1) / 2
    return [float(values[0] - half), float(values[-1] + half)]


def _bytes(numbers: NDArray[np.int64] | Numbers) -> str:
    """Pack whole numbers from 0 to 255."""
    return base64.b64encode(numbers.astype(np.uint8).tobytes()).decode()


def _outline(pattern: patterns.Pattern) -> str:
    """Return the border of the LOW cells as a path in an SVG, in cells from the top left corner."""
    framed = np.pad(pattern, 1)
    path = []
    for turned, step in ((framed, "M{1} {0}h{2}"), (framed.T, "M{0} {1}v{2}")):
        # Borders between one row and the next, in runs; then the same of the columns.
        for row, border in enumerate(turned[1:] != turned[:-1]):
            ends = np.flatnonzero(np.diff(border[1:-1].astype(int), prepend=0, append=0))
            path += [
                step.format(row, begin, end - begin) for begin, end in ends.reshape(-1, 2).tolist()
            ]
    return "".join(path)
