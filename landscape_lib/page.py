"""What a page shows beside figures: tables of numbers, and folds that a click opens.

Each function returns an object that a notebook shows as HTML, and as plain text where there is no
HTML; both are the same each time, so that nbval can compare them. Their look in the book is
``_static/page.css``.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Number
from typing import Any

WIDTH = 76  # characters in a line of a page
_WORDS = {math.inf: "∞", -math.inf: "−∞"}


@dataclass(frozen=True)
class Shown:
    """Something that a notebook shows.

    Attributes:
        html: for a page.
        text: for a terminal.
    """

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def table(
    rows: Iterable[Sequence[object]],
    columns: Sequence[str] | Mapping[str, str],
    *,
    caption: str | None = None,
) -> Shown:
    """Show rows as a table: numbers to the right, in the format of their column.

    Args:
        rows: of texts, numbers, and ``None`` for a place that stays empty; the first column names
            the row.
        columns: their headings; or headings with formats, as in ``{"network": "", "loss": ".3f"}``.
        caption: a line above the table.

    Raises:
        TypeError: a truth value, which is no evidence: show the number that decides; anything else
            that is neither text nor number.
        ValueError: no columns, no rows, a row of another length, a format that does not fit.
    """
    formats = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, "")
    cells = [list(row) for row in rows]
    if not formats or not cells:
        raise ValueError(
            f"columns, rows: expected at least one of each, got {len(formats)} and {len(cells)}"
        )
    if len(formats) != len(columns):
        raise ValueError(f"columns: expected different headings, got {list(columns)}")
    for k, row in enumerate(cells):
        if len(row) != len(formats):
            raise ValueError(f"rows[{k}]: expected {len(formats)} values, got {len(row)}")
    right = [
        all(cell is None or not isinstance(cell, str) for cell in column)
        for column in zip(*cells, strict=True)
    ]
    written = [
        [_write(f"rows[{k}]", cell, form) for cell, form in zip(row, formats.values(), strict=True)]
        for k, row in enumerate(cells)
    ]
    head = list(formats)
    return Shown(
        _table_html(head, written, right, caption), _table_text(head, written, right, caption)
    )


def fold(summary: str, inside: Shown | str) -> Shown:
    """Show one line that a click opens.

    Args:
        summary: the line.
        inside: what it hides: a table, or text in paragraphs.

    Raises:
        ValueError: an empty text.
    """
    if not summary.strip() or (isinstance(inside, str) and not inside.strip()):
        raise ValueError("summary, inside: expected words, got an empty text")
    if isinstance(inside, str):
        words = minus_signs(inside.strip())
        parts = [" ".join(part.split()) for part in words.split("\n\n")]
        html = "".join(f"<p>{escape(part)}</p>" for part in parts)
        text = "\n\n".join(textwrap.fill(part, WIDTH) for part in parts)
    else:
        html, text = inside.html, inside.text
    return Shown(
        f'<details class="ll-fold"><summary>{escape(summary)}</summary>\n{html}\n</details>',
        f"{summary}\n{text}",
    )


def answer(text: str) -> Shown:
    """Fold the answer to a prediction away, behind the figure that shows it.

    Args:
        text: two sentences with the number that was measured.

    Raises:
        ValueError: an empty text.
    """
    return fold("Answer", text)


def minus_signs(text: str) -> str:
    """Write the minus signs of numbers in a text as such; hyphens, also those of dates, stay."""
    return re.sub(r"(?<![\w.)-])-(?=\d)|(?<=\de)-(?=\d)", "−", text)


def _write(name: str, cell: object, form: str) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return minus_signs(cell)
    # Numpy's scalars are what xarray gives; its truth values are called bool, too.
    if type(cell).__name__ in ("bool", "bool_") or not isinstance(cell, Number):
        raise TypeError(
            f"{name}: expected texts and numbers, got {cell!r}"
            + (": show the number that decides" if "bool" in type(cell).__name__ else "")
        )
    number: Any = cell
    if math.isnan(number):
        return "not a number"
    if number in _WORDS:
        return _WORDS[number]
    try:
        return format(number, form).replace("-", "−")
    except ValueError as error:
        raise ValueError(f"{name}: {cell!r} cannot be written as {form!r}: {error}") from error


def _table_html(
    head: list[str], rows: list[list[str]], right: list[bool], caption: str | None
) -> str:
    # "dataframe" is what Jupyter, Colab and the book's theme know as a table of numbers.
    lines = ['<div class="ll-table" style="overflow-x:auto"><table class="dataframe">']
    if caption is not None:
        lines.append(f"<caption>{escape(caption)}</caption>")
    style = [' style="text-align:right"' if r else ' style="text-align:left"' for r in right]
    heads = (f'<th scope="col"{s}>{escape(h)}</th>' for h, s in zip(head, style, strict=True))
    lines.append(f"<thead><tr>{''.join(heads)}</tr></thead>")
    lines.append("<tbody>")
    for first, *rest in rows:
        cells = (f"<td{s}>{escape(c)}</td>" for c, s in zip(rest, style[1:], strict=True))
        lines.append(f'<tr><th scope="row"{style[0]}>{escape(first)}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody>", "</table></div>"])


def _table_text(
    head: list[str], rows: list[list[str]], right: list[bool], caption: str | None
) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [] if caption is None else textwrap.wrap(caption, WIDTH)
    for row in [head, *rows]:
        cells = (
            f"{cell:>{width}}" if r else f"{cell:<{width}}"
            for cell, width, r in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
