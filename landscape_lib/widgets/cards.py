"""A few images, with what a network says about each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape_lib.widgets.html import Numbers, array, data_uri, photo_png, text


@dataclass(frozen=True)
class Cards:
    """M images and what networks predict for them, checked.

    Attributes:
        data: for the script: the names of the classes; the images and their true classes.
        probabilities: (..., M, C), 0 to 1, NaN where there is no prediction.
        guesses: (..., M) the predicted classes, -1 where there is none.
    """

    data: dict[str, Any]
    probabilities: Numbers
    guesses: NDArray[np.int64]


def cards(
    images: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[int],
    classes: Sequence[str],
    networks: tuple[int, ...],
) -> Cards:
    """Check images and predictions.

    Args:
        images: (M, height, width) or (M, height, width, 3), from 0 (black) to 1.
        probabilities: (*networks, M, C), from 0 to 1; NaN is no prediction.
        labels: the true class of each image, (M,), from 0 to C - 1.
        classes: names of the C classes.
        networks: how many networks there are, along each coordinate.

    Raises:
        TypeError: something else where numbers or a text are expected.
        ValueError: an empty or wrongly shaped argument, brightness or probability outside [0, 1],
            a label without a class.
    """
    names = [text("classes", name) for name in classes]
    pixels = unit("images", images, (None,) * np.ndim(images))
    if pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (3,)):
        raise ValueError(f"images: given shape {pixels.shape}, expected (M, h, w) or (M, h, w, 3)")
    shape = (*networks, len(pixels), len(names))
    chances = unit("probabilities", probabilities, shape, missing=True)
    truth = array("labels", labels, (len(pixels),))
    if not np.isin(truth, np.arange(len(names))).all():
        raise ValueError(f"labels: given {labels}, expected whole numbers below {len(names)}")
    shown = [
        {
            "label": int(label),
            "alt": f"image {m}: {names[int(label)]}",
            "src": data_uri(photo_png(image)),
        }
        for m, (label, image) in enumerate(zip(truth, pixels, strict=True), start=1)
    ]
    missing = np.isnan(chances).any(axis=-1)
    guesses = np.where(missing, -1, np.nan_to_num(chances).argmax(axis=-1))
    return Cards({"classes": names, "images": shown}, chances, guesses)


def unit(
    name: str, given: ArrayLike, expected: Sequence[int | None], missing: bool = False
) -> Numbers:
    """Check an array of numbers from 0 to 1, with NaN only where some may be missing."""
    numbers = array(name, given, expected)
    if not (((numbers >= 0) & (numbers <= 1)) | (missing & np.isnan(numbers))).all():
        raise ValueError(
            f"{name}: given {np.nanmin(numbers):g} to {np.nanmax(numbers):g}, expected numbers "
            "from 0 to 1"
        )
    return numbers
