"""The project's files agree with one another; the notebooks are in the state that git keeps."""

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from landscape_lib import svg

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
URL = CONFIG["repository"]["url"]

INSTALL_CELL = f"""\
# Colab only: fetch the book and its library; torch stays as it is.
import os
import sys

if "google.colab" in sys.modules:
    repository = "{URL}"
    home = "/content/landscape"
    !test -d {{home}} || git clone -q --depth 1 {{repository}} {{home}}
    if not os.path.isdir(home):
        raise RuntimeError(f"the book is not at {{repository}}")
    %pip install -q --no-deps {{home}}
    %cd {{home}}/book"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def parsed(requirements: list[str]) -> dict[str, Any]:
    return {r.name: r.specifier for r in map(Requirement, requirements)}


def test_environment_yml_asks_for_what_pyproject_asks_for() -> None:
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda.remove("pip")
    renamed = [re.sub(r"^pytorch\b", "torch", entry) for entry in conda]
    core = [f"python {PROJECT['requires-python']}", *PROJECT["dependencies"]]
    assert parsed(renamed) == parsed(core)

    extras = PROJECT["optional-dependencies"]
    assert pip["pip"][0] == "--editable ."
    assert parsed(pip["pip"][1:]) == parsed(extras["book"] + extras["test"])


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'__version__ = "{version}"' in (ROOT / "landscape_lib" / "__init__.py").read_text()


def test_a_room_imports_only_rooms_before_it() -> None:
    """The order is that of the table in CONTRIBUTING.md; ``__init__`` only names what is public."""
    rooms = re.findall(r"^\| `([\w/]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    library = ROOT / "landscape_lib"
    names = {path.relative_to(library).with_suffix(""): path for path in library.rglob("*.py")}
    files = {str(name): path for name, path in names.items() if name.name != "__init__"}
    assert sorted(rooms) == sorted(files)
    for above, room in enumerate(rooms):
        below = {*rooms[:above], "__version__"}
        for node in ast.walk(ast.parse(files[room].read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            if f"{node.module}.".startswith("landscape_lib."):
                _, *path = str(node.module).split(".")
                imported = {"/".join(path)}
                if imported.isdisjoint(rooms):
                    imported = {"/".join([*path, alias.name]) for alias in node.names}
                assert imported <= below, f"{room}, line {node.lineno}"


def test_repository_address_is_the_same_everywhere() -> None:
    assert PROJECT["urls"]["Repository"] == URL
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == URL
    assert f"git clone {URL}\n" in (ROOT / "book" / "index.md").read_text()


def test_first_cell_stops_where_the_book_cannot_be_fetched(tmp_path: Path) -> None:
    """On Colab, played here: the message names the address."""
    nowhere = f"file://{tmp_path}/nowhere"
    cell = INSTALL_CELL.replace(URL, nowhere).replace("/content", str(tmp_path))
    script = tmp_path / "first.ipy"
    script.write_text(f'import sys\nsys.modules["google.colab"] = sys\n{cell}\nprint("went on")')
    run = [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", str(script)]
    done = subprocess.run(
        run, capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert f"RuntimeError: the book is not at {nowhere}" in done.stdout + done.stderr
    assert "went on" not in done.stdout


def test_moving_the_book_needs_the_address_it_is_at(tmp_path: Path) -> None:
    """With none, every file would match."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    config = tmp_path / "_config.yml"
    for before, moves in [(f"  url: {URL}\n", True), ("  branch: main\n", False)]:
        config.write_text(before)
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
        make = ["make", "repository", "URL=https://example.org/book"]
        done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode == 0) == moves
        assert config.read_text() == ("  url: https://example.org/book\n" if moves else before)
    assert "_config.yml: expected a line" in done.stdout


@pytest.mark.parametrize(
    "address",
    ["", "https://", "example.org", "https://a.org/`touch x`", "https://a.org/$$(touch x)"]
    + ["https://a.org/$x", "https://a.org/'", 'https://a.org/"; touch x; "', "https://a.org/a b"],
)
def test_an_address_that_a_shell_would_read_otherwise_is_refused(  # CASES K8
    tmp_path: Path, address: str
) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "_config.yml").write_text(before := f"  url: {URL}\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    make = ["make", "repository", f"URL={address}"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "Name the address, without quotes" in done.stdout
    assert (tmp_path / "_config.yml").read_text() == before and not (tmp_path / "x").exists()


# Stands for Python: makes folders and notes what it is asked to install, or dies of it.
PYTHON = """\
#!/bin/sh
case "$*" in
  *venv*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *pip*) echo "$*" >> installed.log; test ! -f die || kill -9 $PPID ;;
esac
"""


def test_make_installs_once_and_an_interrupted_environment_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    python, log = tmp_path / "python", tmp_path / "installed.log"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("book", "lint", "lab", "run"):
        rule = f"^{name}: ([^#]*)##"
        (needs,) = re.findall(rule, (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert needs.split() == [".venv/installed"]
    make = ["make", ".venv/installed", f"PYTHON={python}"]

    def made() -> int:
        return subprocess.run(make, cwd=tmp_path, capture_output=True).returncode

    (tmp_path / "die").touch()
    assert made() != 0
    left = tmp_path / ".venv" / "half a package"
    left.touch()
    (tmp_path / "die").unlink()
    assert made() == 0 and not left.exists()
    assert log.read_text() == 2 * "-m pip install --editable .[book,test,lab]\n"
    left.touch()
    assert made() == 0 and log.read_text().count("\n") == 2
    (tmp_path / "pyproject.toml").touch()  # newer: installed again, into what is there
    os.utime(tmp_path / ".venv" / "installed", (0, 0))
    assert made() == 0 and left.exists() and log.read_text().count("\n") == 3


def test_an_environment_that_make_did_not_begin_stays(tmp_path: Path) -> None:
    """The README says so: for a build of PyTorch of one's own."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / ".venv" / "torch").touch()
    make = ["make", ".venv/installed", f"PYTHON={python}"]
    assert subprocess.run(make, cwd=tmp_path, capture_output=True).returncode == 0
    assert (tmp_path / ".venv" / "torch").exists()


@each_notebook
def test_first_cell_installs_from_the_configured_address(path: Path) -> None:
    assert code_cells(path)[0].source == INSTALL_CELL


def test_table_of_contents_names_exactly_the_pages_there_are() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    named = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    pages = [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]
    assert sorted(named) == sorted(f"book/{page.stem}" for page in pages)


@each_notebook
def test_outputs_are_kept_where_nbval_compares_them_and_nowhere_else(path: Path) -> None:
    counts = [cell.execution_count for cell in code_cells(path) if cell.execution_count]
    assert counts == sorted(counts), "run the notebook from top to bottom"
    for cell in code_cells(path):
        compared = "# NBVAL_CHECK_OUTPUT" in cell.source
        assert compared == ("keep_output" in cell.metadata.get("tags", [])), cell.source
        assert compared == bool(cell.outputs), f"`make strip`, or run it: {cell.source}"
        if compared:
            assert cell.execution_count, f"nbval needs the count as well: {cell.source}"
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert set(output.get("data", {})) <= {"text/plain", "text/html"}, cell.source


def test_formulas_keep_their_punctuation_and_numbers_their_percent_sign() -> None:
    unbroken = runpy.run_path(str(ROOT / "_static" / "unbroken_lines.py"))["unbroken"]
    formula = '<span class="math notranslate nohighlight">\\(a\\)</span>'
    kept = '<span class="ll-unbroken">{}</span>'
    assert unbroken(f"at {formula}, and ({formula}).") == (
        f"at {kept.format(formula + ',')} and {kept.format(f'({formula}).')}"
    )
    assert (
        unbroken("95 %, 0.05 % of 3 %d") == "95\N{NO-BREAK SPACE}%, 0.05\N{NO-BREAK SPACE}% of 3 %d"
    )


def test_files_to_save_stand_beside_the_page(tmp_path: Path) -> None:
    """The bytes of each file are those that the notebook's link holds."""
    beside = runpy.run_path(str(ROOT / "_static" / "files_beside.py"))["beside"]
    text = "α,loss\n0,1 & 'two'\n"
    link = f'<a download="my line.csv" href="{escape(svg.address("text/csv", text))}">data</a>'
    pages = [beside(link * 2 + "and a=b", tmp_path, "../files") for _ in range(2)]
    assert pages[0] == pages[1] and "data:" not in pages[0] and pages[0].endswith("and a=b")
    (path,) = tmp_path.rglob("*.csv")
    assert path.name == "my line.csv" and path.read_text("utf-8") == text
    assert pages[0].count(f'href="../files/{quote(path.relative_to(tmp_path).as_posix())}"') == 2
