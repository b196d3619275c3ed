"""What `make lint` asks of a chapter, so that it reads well: DESIGN, "A page is for reading".

The pages named in ``TO_DO`` were written before these rules. One that keeps them leaves the list.
"""

import ast
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BOOK = Path(__file__).parents[2] / "book"
TO_DO: set[str] = set()

WIDTH = 76  # characters in a line of a laptop's column
PHONE = 42  # characters in a line of prose on a phone
FIRST_SCREEN = 24  # such lines, below the header
EXERCISES = 2  # with a solution that checks itself whenever the page is run
DRAWS = re.compile(r"^(plt\.\w+|(ll\.)?plots\.(curve|heat|gallery|downloads))$")
SHOWS = re.compile(r"^(ll\.)?widgets\.\w+$")
PICTURE = re.compile(r"!\[|^:::\{(figure|image)\}|^```\{(figure|image)\}|<img ", re.MULTILINE)
# Settings, as in pool=True or 'pool': True, say what was done; they are no evidence.
TRUTH = re.compile(r"(?<![=\w])(?<!': )(?<!&#x27;: )\b(True|False)\b")

Cell = dict[str, Any]


def faults(path: Path) -> list[str]:
    """Return what is wrong with a notebook, each with the number of its cell."""
    cells: list[Cell] = json.loads(path.read_text("utf-8"))["cells"]
    install = next((k for k, cell in enumerate(cells) if cell["cell_type"] == "code"), -1)
    found = []
    for k, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            wide = [] if k == install else list(too_wide("code", text_of(cell["source"])))
            found += [f"cell {k}: {fault}" for fault in [*wide, *of_code(cell)]]
    solved = sum(map(is_solution, cells))
    if solved < EXERCISES:
        found.append(
            f"{solved} solutions of exercises that assert something, at least {EXERCISES}: "
            "a cell 'Code: solution of exercise 1'"
        )
    before = lines_before_a_picture(cells)
    if before > FIRST_SCREEN:
        found.append(
            f"about {before} lines on a phone before the first picture, at most {FIRST_SCREEN}"
        )
    return found


def of_code(cell: Cell) -> Iterator[str]:
    """Yield the faults of one code cell, but for the width of its code."""
    metadata = cell["metadata"]
    folded = bool({"hide-input", "hide-cell"} & set(metadata.get("tags", [])))
    name = metadata.get("mystnb", {}).get("code_prompt_show", "")
    if folded and not re.match(r"Code: \w", name):
        yield "folded without a name: mystnb.code_prompt_show, such as 'Code: draw the map'"
    hidden = {
        "jupyter.source_hidden": metadata.get("jupyter", {}).get("source_hidden") is True,
        "cellView: form": metadata.get("cellView") == "form",
    }
    for setting, is_set in hidden.items():
        if is_set != folded:
            yield f"{setting} is for the cells that are folded in the book, and for those only"
    calls = list(calls_of(text_of(cell["source"])))
    draws = any(DRAWS.match(name) for name, _ in calls)
    has_alt = "alt" in metadata.get("mystnb", {}).get("image", {}) or any(a for _, a in calls)
    if draws and not has_alt and "skip-execution" not in metadata.get("tags", []):
        yield "a figure without alt text: mystnb.image.alt"
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        text = text_of(
            output.get("text", "" if "text/html" in data else data.get("text/plain", ""))
        )
        yield from too_wide("output", text)
        shown = text + text_of(data.get("text/html", ""))
        if truth := TRUTH.search(shown):
            line = shown[: truth.start()].count("\n")
            yield f"a truth value as evidence, show the number: {shown.splitlines()[line].strip()}"


def is_solution(cell: Cell) -> bool:
    name = cell["metadata"].get("mystnb", {}).get("code_prompt_show", "")
    return name.startswith("Code: ") and "exercise" in name and "assert" in text_of(cell["source"])


def text_of(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def too_wide(kind: str, text: str) -> Iterator[str]:
    for line in text.splitlines():
        if len(line) > WIDTH:
            yield f"{kind} of {len(line)} characters, at most {WIDTH}: {line.strip()}"


def calls_of(source: str) -> Iterator[tuple[str, bool]]:
    """Yield what a cell calls outside of functions, and whether it gives an alt text."""
    python = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
    todo: list[ast.AST] = [ast.parse(python)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), any(word.arg == "alt" for word in node.keywords)
        later = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        todo += [child for child in ast.iter_child_nodes(node) if not isinstance(child, later)]


def lines_before_a_picture(cells: list[Cell]) -> float:
    """Estimate the lines that a phone shows before the first picture; infinite without one."""
    lines = 0
    for cell in cells:
        text = text_of(cell["source"])
        if cell["cell_type"] == "markdown":
            picture = PICTURE.search(text)
            prose = text[: picture.start()] if picture else text
            lines += sum(1 + len(line) // PHONE for line in prose.splitlines() if line.strip())
            if picture:
                return lines
            continue
        tags = cell["metadata"].get("tags", [])
        folded = "hide-input" in tags or "hide-cell" in tags
        lines += 2 if folded else 2 + len(text.splitlines())
        called = [name for name, _ in calls_of(text)] if "hide-cell" not in tags else []
        if any(DRAWS.match(name) or SHOWS.match(name) for name in called):
            return lines
    return math.inf


def check(book: Path, to_do: set[str]) -> list[str]:
    """Return what `make lint` prints: faults of the pages, and mistakes in the list."""
    pages = {path.name.split("_")[0]: path for path in sorted(book.glob("*_*.ipynb"))}
    said = [f"TO_DO names {name}, and there is no such page" for name in sorted(to_do - {*pages})]
    for name, path in pages.items():
        wrong = faults(path)
        if name not in to_do:
            said += [f"{path.name}: {fault}" for fault in wrong]
        elif not wrong:
            said.append(f"{path.name} keeps all rules: take {name} off the list TO_DO")
    return said


if __name__ == "__main__":
    if "--all" in sys.argv:  # what is left to do
        TO_DO.clear()
    problems = check(BOOK, TO_DO)
    print("\n".join(problems) or "All pages are as they should be, but for those on the list.")
    sys.exit(bool(problems))
