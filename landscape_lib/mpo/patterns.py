"""Patterns: binary pictures that say in which cells of a slice the loss is to be low.

A pattern is a boolean array, ``True`` for LOW and ``False`` for HIGH. In two dimensions rows run
downwards and columns to the right, as in any picture; ``mpo`` fits patterns of any number of
dimensions. ``~pattern`` exchanges LOW and HIGH.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from landscape_lib.data_files import open_picture
from landscape_lib.mpo import drawings as mpo_drawings

Pattern = NDArray[np.bool_]
Size = int | tuple[int, int]

NAMES = tuple(mpo_drawings.DRAWINGS)
"""The pictures that :func:`draw` knows."""

LARGEST = 1 << 22
"""The most cells of a pattern: beyond, the arrays of a fit would not fit in memory."""

LOW_CHARACTERS, HIGH_CHARACTERS = "#X1@", ".- 0"


def from_drawing(drawing: str | Sequence[str] | ArrayLike) -> Pattern:
    """Return a pattern drawn by hand.

    Args:
        drawing: an array of 0 and 1 (or booleans) of at least one dimension; or rows of text, as a
            sequence or as one string with line breaks, in which ``#``, ``X``, ``1`` and ``@`` are
            LOW and ``.``, ``-``, ``0`` and spaces HIGH.

    Returns:
        A new boolean array.

    Raises:
        TypeError: ``drawing`` is neither.
        ValueError: other characters or numbers, rows of different length, no dimension, too many
            cells, or cells of one class only (a single LOW cell is allowed: it is ordinary
            training).
    """
    if isinstance(drawing, str):
        drawing = drawing.strip("\n").split("\n")
    if isinstance(drawing, (list, tuple)) and any(isinstance(row, str) for row in drawing):
        drawing = _read_rows(drawing)
    try:
        array = np.asarray(drawing)
    except ValueError as error:
        rows = drawing if isinstance(drawing, (list, tuple)) else ()
        lengths = [len(row) if isinstance(row, Sized) else 1 for row in rows]
        raise ValueError(f"pattern: expected rows of one length, got rows of {lengths}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"pattern: expected an array of 0 and 1 or rows of text, got {type(drawing).__name__} "
            f"of {array.dtype}"
        )
    if array.ndim == 0:
        raise ValueError("pattern: expected at least one dimension, got a single number")
    if not 1 <= array.size <= LARGEST:
        raise ValueError(f"pattern: expected 1 to {LARGEST:,} cells, got shape {array.shape}")
    wrong = array[(array != 0) & (array != 1)]
    if wrong.size:
        raise ValueError(
            f"pattern: expected only 0 and 1, got {wrong[0]} (for a picture with grey values: "
            f"from_image, or compare it with a threshold)"
        )
    pattern = array.astype(bool)
    if pattern.all() and pattern.size > 1 or not pattern.any():
        kind = "LOW" if pattern.any() else "HIGH"
        raise ValueError(
            f"pattern: expected LOW and HIGH cells, got {pattern.size} that are {kind}"
        )
    return pattern


def from_image(
    path: str | os.PathLike[str], size: Size | None = None, *, threshold: float = 0.5
) -> Pattern:
    """Read a picture: LOW where it is opaque or, without transparency, where it is dark.

    Args:
        path: a PNG or JPEG file.
        size: height and width, or one number for both; the picture's own if ``None``.
        threshold: opacity (or darkness) in [0, 1] above which a cell is LOW, after resizing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no picture, a bad size or threshold, or all cells come out equal.
    """
    _check_fraction("threshold", threshold)
    picture = open_picture(path)
    grey = np.asarray(picture.convert("L"))
    opacity = np.asarray(picture.convert("RGBA"))[..., 3]
    ink = opacity if opacity.min() < 255 else 255 - grey
    return from_drawing(_resized(ink, ink.shape if size is None else size, threshold))


def from_text(text: str, size: Size) -> Pattern:
    """Return text in PIL's default font, LOW on HIGH, as large as fits with a margin of one cell.

    Args:
        text: one or more lines.
        size: height and width, or one number for both.

    Raises:
        ValueError: there is nothing to see, because of the text or because of the size.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = _check_size(size)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text: expected at least one visible character, got {text!r}")
    font = ImageFont.load_default(size=128)
    bounds = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font, align="center")
    left, top, right, bottom = (int(b) for b in (*np.floor(bounds[:2]), *np.ceil(bounds[2:])))
    image = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), text, 255, font, align="center")
    factor = min((height - 2) / image.height, (width - 2) / image.width)
    inner = [round(factor * side) for side in (image.height, image.width)]
    if min(inner) < 1:
        raise ValueError(f"size: {height} x {width} cells have no room for {text!r}")
    pattern = np.zeros((height, width), dtype=bool)
    row, column = (height - inner[0]) // 2, (width - inner[1]) // 2
    letters = _resized(np.asarray(image), (inner[0], inner[1]))
    pattern[row : row + inner[0], column : column + inner[1]] = letters
    return from_drawing(pattern)


def draw(name: str, size: Size = 50) -> Pattern:
    """Draw one of our own pictures.

    Args:
        name: one of ``NAMES``.
        size: height and width, or one number for both; the picture is centred.

    Raises:
        ValueError: an unknown name, or a size below 1 or above ``LARGEST`` cells.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return from_drawing(mpo_drawings.draw(name, *_check_size(size)))


def random_mask(size: Size = 30, p: float = 0.5, *, frame: bool = True, seed: int = 0) -> Pattern:
    """Draw a random mask, the harder to fit the nearer p is to one half (MPO paper, section 4.2).

    The authors' code surrounds their masks: the outermost ring of cells is HIGH, the next one LOW,
    and only what is inside is random. With 30 x 30 cells these are 116 HIGH and 108 LOW cells that
    are easy to fit.

    Args:
        size: height and width, or one number for both.
        p: probability of LOW.
        frame: with the two rings, or random everywhere.
        seed: of the mask.

    Raises:
        ValueError: ``p`` outside [0, 1], no room for the frame, or all cells come out equal.
    """
    shape = _check_size(size)
    _check_fraction("p", p)
    if frame and min(shape) < 5:
        raise ValueError(f"size: expected at least 5 cells a side with a frame, got {size}")
    mask = np.random.default_rng(seed).random(shape) < p
    if frame:
        inside = mask[2:-2, 2:-2].copy()
        mask[:] = False
        mask[1:-1, 1:-1] = True
        mask[2:-2, 2:-2] = inside
    return from_drawing(mask)


def resize(pattern: ArrayLike, size: Size) -> Pattern:
    """Return a two-dimensional pattern with another number of cells.

    A new cell is LOW if more than half of its area was.

    Raises:
        ValueError: the pattern has other than two dimensions, or all cells come out equal.
    """
    old = from_drawing(pattern)
    if old.ndim != 2:
        raise ValueError(f"pattern: expected two dimensions, got shape {old.shape}")
    return from_drawing(_resized(old.astype(np.uint8) * 255, size))


def prune(pattern: ArrayLike) -> NDArray[np.int8]:
    """Say which cells are worth training: +1 for LOW, -1 for HIGH, 0 for those left out.

    A cell is left out if all cells around it, diagonals included, are of its own class: the model
    interpolates there without being trained to (MPO paper, appendix A). Beyond the border there are
    no cells.

    Args:
        pattern: of any number of dimensions; here it may be of one class.
    """
    cells = np.asarray(pattern).astype(bool)
    uniform = minimum_filter(cells, 3, mode="nearest") == maximum_filter(cells, 3, mode="nearest")
    return np.where(uniform, 0, np.where(cells, 1, -1)).astype(np.int8)


def trained(pattern: Pattern, pruned: bool | int = True) -> NDArray[np.int8]:
    """Say which cells a fit trains: +1 for LOW, -1 for HIGH, 0 for those left out, if any are.

    A pattern of a single cell is ordinary training, and nothing of it is left out. A number k of 2
    or more keeps, of the cells that pruning leaves out, every k-th along each axis.
    """
    cells = np.where(pattern, 1, -1).astype(np.int8)
    if not pruned or pattern.size == 1:
        return cells
    kinds = prune(pattern)
    if pruned is not True:
        some = (slice(None, None, int(pruned)),) * pattern.ndim
        kinds[some] = cells[some]
    return kinds


def _read_rows(rows: Sequence[Any]) -> list[list[bool]]:
    for number, row in enumerate(rows):
        known = isinstance(row, str) and set(row) <= set(LOW_CHARACTERS + HIGH_CHARACTERS)
        if not known or len(row) != len(rows[0]):
            raise ValueError(
                f"pattern: expected rows of one length, of {LOW_CHARACTERS!r} for LOW and "
                f"{HIGH_CHARACTERS!r} for HIGH, got row {number}: {row!r}"
            )
    return [[character in LOW_CHARACTERS for character in row] for row in rows]


def _resized(grey: NDArray[np.uint8], size: Size, threshold: float = 0.5) -> Pattern:
    """Say in which cells the mean over their area is above a threshold."""
    from PIL import Image

    height, width = _check_size(size)
    mean = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BOX))
    return mean > 255 * threshold + 0.5  # PIL rounds: exactly half is not above half


def _check_size(size: Any) -> tuple[int, int]:
    sides = size if isinstance(size, tuple) else (size, size)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or min(sides) < 1 or sides[0] * sides[1] > LARGEST:
        raise ValueError(
            f"size: expected (height, width) or one whole number for both, at least 1 and at most "
            f"{LARGEST:,} cells in all, got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def _check_fraction(name: str, value: Any) -> None:
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
