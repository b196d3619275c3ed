"""The figure index: which figure of the sources stands where, and what came of it.

Each chapter shows a :func:`finding` for every figure that it reproduces. What is shown is kept in
the notebook and compared by nbval, so the index that :func:`write_index` gathers from the notebooks
says nothing that a cell has not measured.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

import xarray as xr

from landscape_lib import page
from landscape_lib.results import duration, folder

VERDICTS = ("reproduced", "partly reproduced", "not reproduced")

# Every figure of both sources, and the chapter it belongs to.
FIGURES = {
    "Report Fig. 1": 1,
    "Report Fig. 2": 2,
    "Report Fig. 3": 3,
    "Report Fig. 4": 3,
    "Report Fig. 5": 4,
    "Report Fig. 6": 6,
    "Report Fig. 7": 7,
    "Report Fig. 8": 5,
    "MPO Fig. 1": 8,
    "MPO Fig. 2": 8,
    "MPO Fig. 3": 10,
    "MPO Fig. 4a": 10,
    "MPO Fig. 4b": 10,
    "MPO Fig. 5": 8,
    "MPO Fig. 6": 9,
}

_HEAD = """\
# Figure index

Every figure of the two sources, whether its finding was reproduced, and in which chapter. Each
verdict follows from a **rule** that the chapter states beside its numbers; below the table
stand rule and numbers of each. This page is generated from what the chapters show.

| figure | finding | where |
|---|---|---|"""
_WORDS = {
    "measured": "Measured",
    "rule": "Rule",
    "paper": "In the source",
    "here": "Here",
    "cost": "Cost",
}
_FIELDS = ("figure", "claim", "paper", "here", "cost", "measured", "rule", "verdict")
_OPTIONAL = {"rule"}


def finding(
    *,
    figure: str,
    claim: str,
    paper: str,
    here: str,
    measured: str,
    verdict: str,
    rule: str | None = None,
    result: xr.Dataset | Sequence[xr.Dataset] | None = None,
) -> page.Shown:
    """Say what a source claims about one of its figures and what was measured here.

    Args:
        figure: a key of ``FIGURES``.
        claim: what the source says the figure shows.
        paper: the source's setting.
        here: our setting.
        measured: our numbers.
        verdict: one of ``VERDICTS``, decided by the numbers.
        rule: by which the numbers decide, said before they are seen: "reproduced if the loss ...".
        result: the stored result behind it, or all of them, for the cost; ``None`` if computed on
            the spot.

    Returns:
        A list for a page; each field on lines of its own for a terminal.

    Raises:
        ValueError: unknown figure or verdict.
    """
    if figure not in FIGURES:
        raise ValueError(f"figure: expected one of {tuple(FIGURES)}, got {figure!r}")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict: expected one of {VERDICTS}, got {verdict!r}")
    cost = "seconds, computed in the chapter"
    if result is not None:
        attrs = [one.attrs for one in ([result] if isinstance(result, xr.Dataset) else result)]
        seconds = sum(float(one["wall_seconds"]) for one in attrs)
        devices = dict.fromkeys(str(one["device"]) for one in attrs)
        cost = f"{duration(seconds)} on {' and '.join(devices)}"
    values = (figure, claim, paper, here, cost, measured, rule, verdict)
    html, text = [], []
    for field, value in zip(_FIELDS, values, strict=True):
        if value is None:
            continue
        value = page.minus_signs(" ".join(value.split()))
        html.append(f"<dt>{field}</dt><dd>{escape(value)}</dd>")
        # Lines break at spaces alone, so that joining them again gives the text back.
        line = textwrap.fill(
            f"{field + ':':<10}{value}",
            page.WIDTH,
            subsequent_indent=" " * 10,
            break_long_words=False,
            break_on_hyphens=False,
        )
        text.append(line)
    inside = "\n".join(html)
    return page.Shown(f'<dl class="ll-finding">\n{inside}\n</dl>', "\n".join(text))


def write_index(book: Path) -> Path:
    """Write ``figures.md`` from the findings that the notebooks of a book hold.

    Args:
        book: folder with the chapters ``NN_name.ipynb``.

    Returns:
        The file.

    Raises:
        ValueError: a notebook holds a finding that is not as :func:`finding` shows it.
    """
    found: dict[str, list[dict[str, str]]] = {figure: [] for figure in FIGURES}
    for chapter in chapters(book):
        for record in read_findings(chapter):
            found[record["figure"]].append(record)
    lines = _HEAD.splitlines()
    for figure, records in found.items():
        if not records:
            lines.append(f"| {figure} | in preparation | chapter {FIGURES[figure]} |")
        for record in records:
            lines.append(
                f"| [{figure}](#{_slug(figure, set())}) | **{record['verdict']}** "
                f"| {_where(record)} |"
            )
    for figure, records in found.items():
        if records:
            lines += ["", f"## {figure}"]
        for record in records:
            verdict = f"**{record['verdict'].capitalize()}**, {_where(record)}."
            lines += ["", f"{verdict} Claim: {record['claim']}.", ""]
            lines += [f"- **{_WORDS[f]}:** {record[f]}" for f in _WORDS if f in record]
    path = book / "figures.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _where(record: dict[str, str]) -> str:
    """Link to the chapter that shows a finding."""
    return f"[chapter {int(record['link'][:2])}]({record['link']})"


def chapters(book: Path) -> list[Path]:
    """Return the notebooks of a book, in order."""
    return sorted(book.glob("[0-9][0-9]_*.ipynb"))


def read_findings(notebook: Path) -> list[dict[str, str]]:
    """Return the findings that a notebook holds, with heading and link.

    Raises:
        ValueError: a finding lacks a field, or its figure or verdict is not one of those there are.
    """
    found = []
    heading, slug = "", ""
    slugs: set[str] = set()
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"^```.*?^```", "", "".join(cell["source"]), flags=re.DOTALL | re.M)
            for match in re.finditer(r"^#{1,3} +(.+?)(?: +#+)? *$", prose, flags=re.MULTILINE):
                heading = match.group(1)
                slug = _slug(heading, slugs)
                slugs.add(slug)
            continue
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/plain", ""))
            if text.startswith("figure:"):
                record = _parse(text)
                _check(record, notebook)
                link = f"{notebook.name}#{slug}"
                found.append(record | {"heading": heading, "link": link})
    return found


def _slug(heading: str, taken: set[str]) -> str:
    """Return the anchor that MyST gives a heading (``myst_heading_anchors``)."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link, its text
    plain = re.sub(r"\$[^$]*\$", "", plain)  # mathematics does not count
    slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
    number = 1
    while slug in taken:
        slug, number = f"{slug}-{number}", number + 1
    return slug


def _parse(text: str) -> dict[str, str]:
    record: dict[str, str] = {}
    field = ""
    for line in text.splitlines():
        head, _, rest = line.partition(":")
        if head in _FIELDS and not line.startswith(" "):
            field, line = head, rest
        record[field] = f"{record.get(field, '')} {line.strip()}".strip()
    return record


def _check(record: dict[str, str], notebook: Path) -> None:
    missing = [field for field in _FIELDS if not record.get(field) and field not in _OPTIONAL]
    if missing:
        raise ValueError(f"{notebook.name}: a finding lacks {', '.join(missing)}")
    for field, known in {"figure": tuple(FIGURES), "verdict": VERDICTS}.items():
        if record[field] not in known:
            raise ValueError(
                f"{notebook.name}: {field}: expected one of {known}, got {record[field]!r}"
            )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else folder().parent
    print(f"wrote {write_index(target)}")
