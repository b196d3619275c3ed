"""Every chapter runs from scratch, on small data, with nothing stored and nothing downloaded."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

BOOK = Path(__file__).parents[2] / "book"


@pytest.mark.parametrize("notebook", sorted(BOOK.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_chapter_runs_at_smoke_scale(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDSCAPE_SCALE", "smoke")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("LANDSCAPE_RECOMPUTE", raising=False)
    client = NotebookClient(
        nbformat.read(notebook, as_version=4),
        kernel_name="python3",
        timeout=1800,  # only ends what hangs
        startup_timeout=1800,
        resources={"metadata": {"path": str(BOOK)}},
    )
    client.execute()
