"""The figure index: which figure of the sources stands where, and what came of it.

Each chapter prints a :func:`finding` for every figure that it reproduces. The printed text is kept
in the notebook and compared by nbval, so the index that :func:`write_index` gathers from the
notebooks says nothing that a cell has not measured.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import xarray as xr

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

_FIELDS = ("figure", "claim", "paper", "here", "cost", "measured", "verdict")


def finding(
    *,
    figure: str,
    claim: str,
    paper: str,
    here: str,
    measured: str,
    verdict: str,
    result: xr.Dataset | None = None,
) -> None:
    """Print what a source claims about one of its figures and what was measured here.

    Args:
        figure: a key of ``FIGURES``.
        claim: what the source says the figure shows.
        paper: the source's setting.
        here: our setting.
        measured: our numbers.
        verdict: one of ``VERDICTS``, decided by the numbers.
        result: the stored result behind it, for the cost; ``None`` if computed on the spot.

    Raises:
        ValueError: unknown figure or verdict.
    """
    if figure not in FIGURES:
        raise ValueError(f"figure: expected one of {tuple(FIGURES)}, got {figure!r}")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict: expected one of {VERDICTS}, got {verdict!r}")
    cost = "seconds, computed in the chapter"
    if result is not None:
        cost = f"{duration(float(result.attrs['wall_seconds']))} on {result.attrs['device']}"
    values = (figure, claim, paper, here, cost, measured, verdict)
    for field, value in zip(_FIELDS, values, strict=True):
        print(textwrap.fill(f"{field + ':':<10}{value}", 76, subsequent_indent=" " * 10))


def write_index(book: Path) -> Path:
    """Write ``figures.md`` from the findings that the notebooks of a book hold.

    Args:
        book: folder with the chapters ``NN_name.ipynb``.

    Returns:
        The file.
    """
    findings = {
        record["figure"]: record for path in chapters(book) for record in read_findings(path)
    }
    lines = [
        "# Figure index",
        "",
        "Every figure of the two sources, where it stands in this book, and whether its finding",
        "was reproduced. This page is generated from what the chapters print; the numbers behind",
        "each verdict stand in the chapter.",
        "",
        "| figure | where | in the source | here | cost | finding |",
        "|---|---|---|---|---|---|",
    ]
    for figure, chapter in FIGURES.items():
        record = findings.get(figure)
        if record is None:
            lines.append(f"| {figure} | chapter {chapter}, in preparation | | | | |")
        else:
            lines.append(
                f"| {figure} | [{record['heading']}]({record['link']}) | {record['paper']} "
                f"| {record['here']} | {record['cost']} "
                f"| **{record['verdict']}**: {record['measured']} |"
            )
    path = book / "figures.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def chapters(book: Path) -> list[Path]:
    """Return the notebooks of a book, in order."""
    return sorted(book.glob("[0-9][0-9]_*.ipynb"))


def read_findings(notebook: Path) -> list[dict[str, str]]:
    """Return the findings whose printed text a notebook holds, with heading and link."""
    found = []
    heading = ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for match in re.finditer(r"^#{1,3} (.+)$", source, flags=re.MULTILINE):
                heading = match.group(1).strip()
            continue
        for output in cell.get("outputs", []):
            text = "".join(output.get("text", ""))
            if text.startswith("figure:"):
                slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
                link = f"{notebook.name}#{slug}"
                found.append(_parse(text) | {"heading": heading, "link": link})
    return found


def _parse(text: str) -> dict[str, str]:
    record: dict[str, str] = {}
    field = ""
    for line in text.splitlines():
        head, _, rest = line.partition(":")
        if head in _FIELDS and not line.startswith(" "):
            field, line = head, rest
        record[field] = f"{record.get(field, '')} {line.strip()}".strip()
    return record


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else folder().parent
    print(f"wrote {write_index(target)}")
