"""Tables and folds: the same each time, right in HTML and in plain text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from landscape_lib import page

ROWS = [("MLP", 0.12345, 1234), ("CNN <small>", -2.0, None), ("none", np.nan, np.inf)]
COLUMNS = {"network": "", "loss": ".3f", "steps": ",.0f"}


def test_a_table_in_plain_text_has_aligned_columns() -> None:
    assert repr(page.table(ROWS, COLUMNS, caption="Three networks.")) == (
        "Three networks.\n"
        "network              loss  steps\n"
        "MLP                 0.123  1,234\n"
        "CNN <small>        −2.000      –\n"
        "none         not a number      ∞"
    )


def test_a_table_in_html_has_the_same_cells_and_headings_for_rows_and_columns() -> None:
    html = page.table(ROWS, COLUMNS, caption="Three & more.")._repr_html_()
    assert "<caption>Three &amp; more.</caption>" in html
    assert re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', html) == ["network", "loss", "steps"]
    names = re.findall(r'<th scope="row"[^>]*>([^<]*)</th>', html)
    assert names == ["MLP", "CNN &lt;small&gt;", "none"]
    cells = re.findall(r'<td style="text-align:right">([^<]*)</td>', html)
    assert cells == ["0.123", "1,234", "−2.000", "–", "not a number", "∞"]


def test_columns_without_formats_and_numbers_of_numpy() -> None:
    shown = page.table([(np.float32(0.5), np.int64(3), "yes")], ["a", "b", "c"])
    assert repr(shown) == "  a  b  c\n0.5  3  yes"


@pytest.mark.parametrize("cell", [True, np.bool_(False)])
def test_a_truth_value_is_no_evidence(cell: Any) -> None:
    with pytest.raises(TypeError, match=r"rows\[1\]: .* show the number that decides"):
        page.table([("a", 1), ("b", cell)], ["name", "passed"])


@pytest.mark.parametrize(
    ("rows", "columns", "error", "message"),
    [
        ([], ["a"], ValueError, "got 1 and 0"),
        ([()], [], ValueError, "got 0 and 1"),
        ([(1, 2)], ["a"], ValueError, r"rows\[0\]: expected 1 values, got 2"),
        ([(1, 2)], ["a", "a"], ValueError, "columns: expected different headings"),
        ([(1.5,)], {"a": "d"}, ValueError, r"rows\[0\]: 1.5 cannot be written as 'd'"),
        ([([1],)], ["a"], TypeError, r"rows\[0\]: expected texts and numbers, got \[1\]"),
    ],
)
def test_bad_tables_are_named(rows: Any, columns: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        page.table(rows, columns)


def test_an_answer_is_closed_until_it_is_asked_for() -> None:
    shown = page.answer("The loss falls\n  to 0.3 < 0.5.\n\nAnd " + "on " * 40)
    assert shown.html.startswith('<details class="ll-fold"><summary>Answer</summary>')
    assert "<p>The loss falls to 0.3 &lt; 0.5.</p><p>And on" in shown.html
    first, *rest = repr(shown).splitlines()
    assert first == "Answer" and rest[:2] == ["The loss falls to 0.3 < 0.5.", ""]
    assert max(map(len, rest)) <= page.WIDTH
    with pytest.raises(ValueError, match="expected words"):
        page.answer(" ")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("from -2.85 to (-1)", "from −2.85 to (−1)"),
        ("1e-4, x=-.5", "1e−4, x=-.5"),
        ("2026-11-26, scale-invariant, 3-fold, f(1)-2, a - b", None),
    ],
)
def test_numbers_have_minus_signs_and_words_have_hyphens(written: str, read: str | None) -> None:
    assert page.minus_signs(written) == (read or written)
    assert (read or written) in page.answer(written).text


def test_a_fold_may_hold_a_table() -> None:
    table = page.table(ROWS, COLUMNS)
    fold = page.fold("The numbers", table)
    assert table.html in fold.html and repr(fold) == f"The numbers\n{table.text}"
