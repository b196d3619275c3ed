"""The lint of pages finds what it says it finds, and nothing else."""

import copy
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

spec = importlib.util.spec_from_file_location(
    "lint_pages", Path(__file__).with_name("lint_pages.py")
)
assert spec and spec.loader
lint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lint)


def code(source: str, *outputs: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": list(outputs)}


def prints(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "text": text.splitlines(keepends=True)}


def folded(name: str = "Code: draw it", **more: Any) -> dict[str, Any]:
    prompt = {"code_prompt_show": name, **more}
    hidden = {"jupyter": {"source_hidden": True}, "cellView": "form"}
    return {"tags": ["hide-input"], "mystnb": prompt, **hidden}


INSTALL = code("# " + "x" * 90 + "\n%pip install it", **folded("Code: fetch the book"))
DRAW = "fig, ax = plt.subplots()"
SOLUTION = code("assert loss < 1", **folded("Code: solution of exercise 1"))
GOOD = [
    {"cell_type": "markdown", "source": "# Title\n\nWords.", "metadata": {}},
    INSTALL,
    code(DRAW, **folded(image={"alt": "A bowl."})),
    code("print(loss)", prints("loss 0.3, pool=True, 'half': False")),
    code("def later():\n    plt.plot([1])"),
    code("ll.widgets.surface(found, alt='A bowl.')"),
    SOLUTION,
    SOLUTION,
]


def faults(tmp_path: Path, *cells: dict[str, Any]) -> list[str]:
    path = tmp_path / "03_page.ipynb"
    path.write_text(json.dumps({"cells": list(cells)}), encoding="utf-8")
    return lint.faults(path)


def test_a_good_page_has_no_faults(tmp_path: Path) -> None:
    assert faults(tmp_path, *GOOD) == []


WIDE = "x" * 77
TABLE = {"output_type": "execute_result", "data": {"text/plain": WIDE, "text/html": "<table>"}}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (code(f"a = '{WIDE}'"), "code of 83 characters"),
        (code("print(1)", prints(f"short\n{WIDE}")), "output of 77 characters"),
        (code("table", TABLE), None),  # its plain text is not what the page shows
        (code("x", **folded("Show code")), "folded without a name"),
        (code("x", **folded() | {"cellView": None}), "cellView: form is for"),
        (code("x", **folded() | {"jupyter": {}}), "jupyter.source_hidden is for"),
        (code("x", cellView="form"), "cellView: form is for"),
        (code("ll.plots.curve(found)"), "a figure without alt text"),
        (code("ll.plots.downloads(figure, found)"), "a figure without alt text"),
        (code("plt.plot([1])", tags=["skip-execution"]), None),
        (code("x", prints("orthogonal: True")), "a truth value as evidence.*orthogonal: True"),
        (code("x", {"data": {"text/html": "<td>False</td>"}}), "a truth value as evidence"),
        (code("x", prints("Trueness, untrue")), None),
    ],
)
def test_it_finds_each_fault(tmp_path: Path, cell: dict[str, Any], expected: str | None) -> None:
    found = faults(tmp_path, *GOOD, cell)
    if expected is None:
        assert found == []
    else:
        (fault,) = found
        assert fault.startswith("cell 8: ")
        assert lint.re.search(expected, fault)


def test_the_first_picture_stands_in_the_first_screen(tmp_path: Path) -> None:
    words = {"cell_type": "markdown", "source": "words " * 300, "metadata": {}}
    (fault,) = faults(tmp_path, words, *GOOD)
    assert "lines on a phone before the first picture, at most 24" in fault
    picture = copy.deepcopy(words)
    picture["source"] = "![A bowl.](bowl.svg)\n\n" + words["source"]
    assert faults(tmp_path, picture, *GOOD) == []
    assert lint.lines_before_a_picture([words, INSTALL]) == math.inf


def test_two_exercises_have_solutions_that_check_themselves(tmp_path: Path) -> None:
    words = code("print(loss)", **folded("Code: solution of exercise 2"))
    (fault,) = faults(tmp_path, *GOOD[:-1], words)
    assert fault.startswith("1 solutions of exercises that assert something, at least 2")


def test_the_list_of_what_is_left_to_do_can_only_shrink(tmp_path: Path) -> None:
    for name, cells in {"01_good": GOOD, "02_bad": [INSTALL]}.items():
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert lint.check(tmp_path, {"02"}) == []
    assert {line.split(":")[0] for line in lint.check(tmp_path, set())} == {"02_bad.ipynb"}
    assert lint.check(tmp_path, {"01", "02", "09"}) == [
        "TO_DO names 09, and there is no such page",
        "01_good.ipynb keeps all rules: take 01 off the list TO_DO",
    ]
