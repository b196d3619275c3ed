"""The figure index says what the chapters show, word for word, and links to where they do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import xarray as xr

from landscape_lib.figures import (
    FIGURES,
    VERDICTS,
    chapters,
    finding,
    read_findings,
    write_index,
)

FINDING = {
    "figure": "Report Fig. 2",
    "claim": "the loss falls monotonically from the untrained to the trained network",
    "paper": "maxout network on MNIST, 401 points",
    "here": "an MLP and a small CNN, Fashion-MNIST, five seeds each, 61 points, α in [−0.25, 1.25]",
    "measured": "monotone in 10 of 10 lines; largest rise 0.0003 ± 0.0002 (p > 0.05)",
    "verdict": "partly reproduced",
}


def shown(**changes: object) -> str:
    return repr(finding(**(FINDING | changes)))


def markdown(*lines: str) -> dict[str, object]:
    return {"cell_type": "markdown", "source": [f"{line}\n" for line in lines]}


def code(*texts: str) -> dict[str, object]:
    outputs = [{"output_type": "display_data", "data": {"text/plain": text}} for text in texts]
    return {"cell_type": "code", "source": ["finding(...)\n"], "outputs": outputs}


def notebook(folder: Path, *cells: dict[str, object], name: str = "02_a_line.ipynb") -> Path:
    path = folder / name
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path


def test_a_finding_goes_to_the_notebook_and_back(tmp_path):
    text = shown()
    assert max(map(len, text.splitlines())) <= 76 and len(text.splitlines()) > 7
    path = notebook(tmp_path, markdown("# A line", "", "words"), code(text))
    (record,) = read_findings(path)
    assert record == FINDING | {
        "cost": "seconds, computed in the chapter",
        "heading": "A line",
        "link": "02_a_line.ipynb#a-line",
    }


def test_the_cost_is_that_of_the_stored_result(tmp_path):
    result = xr.Dataset(attrs={"wall_seconds": 4000.0, "device": "CPU (2 threads)"})
    path = notebook(tmp_path, markdown("# T"), code(shown(result=result)))
    assert read_findings(path)[0]["cost"] == "67 min on CPU (2 threads)"


def test_the_cost_of_several_results_is_their_sum_and_names_each_device_once():
    runs = [
        xr.Dataset(attrs={"wall_seconds": seconds, "device": device})
        for seconds, device in ((60.0, "CPU"), (3000.0, "GPU"), (1000.0, "CPU"))
    ]
    assert "68 min on CPU and GPU" in shown(result=runs)


def test_the_rule_of_a_verdict_stands_before_it_and_in_the_index(tmp_path):
    rule = "reproduced if the loss rises nowhere by more than two standard errors, in all lines"
    text = shown(rule=rule)
    assert text.index("measured:") < text.index("rule:") < text.index("verdict:")
    assert max(map(len, text.splitlines())) <= 76
    path = notebook(tmp_path, markdown("# A line"), code(text))
    assert read_findings(path)[0]["rule"] == rule
    index = write_index(tmp_path).read_text()
    assert f"- **Measured:** {FINDING['measured']}\n- **Rule:** {rule}\n" in index
    assert "rule" not in shown()


@pytest.mark.parametrize("length", range(40, 80))
def test_wrapped_lines_are_joined_as_they_were(length, tmp_path):
    # Wherever the line breaks: at a hyphen, in a long word, beside a dash or a colon.
    text = f"{'x' * length} scale-invariant – paper: here: 2026-11-26 a--b {'y' * 90} (end-to-end)"
    path = notebook(tmp_path, markdown("# T"), code(shown(measured=text, claim=text)))
    (record,) = read_findings(path)
    assert record["measured"] == record["claim"] == text
    assert record["paper"] == FINDING["paper"]


def test_all_findings_of_a_cell_are_found(tmp_path):
    first, second = shown(), shown(figure="Report Fig. 1", verdict=VERDICTS[0])
    cells = [markdown("# T"), code("loss 0.3", first, second), code("figure of speech")]
    records = read_findings(notebook(tmp_path, *cells))
    assert [record["figure"] for record in records] == ["Report Fig. 2", "Report Fig. 1"]
    assert [record["measured"] for record in records] == [FINDING["measured"]] * 2
    assert [record["verdict"] for record in records] == ["partly reproduced", "reproduced"]


def test_a_page_shows_what_the_index_says():
    found = finding(**(FINDING | {"claim": "a < b, by -0.25 (1e-3) at most, 3-fold"}))
    html = found._repr_html_()
    assert "<dt>claim</dt><dd>a &lt; b, by −0.25 (1e−3) at most, 3-fold</dd>" in html
    assert html.count("<dt>") == html.count("<dd>") == len(FINDING) + 1  # and the cost
    assert "a < b, by −0.25 (1e−3)" in repr(found)


def test_each_finding_links_to_the_heading_above_it(tmp_path):
    path = notebook(
        tmp_path,
        markdown("# The chapter", "text", "## Is it a bowl? (yes, mostly)"),
        code(shown()),
        markdown("#### a small heading", "no # heading", "```", "# a comment", "```"),
        code(shown()),
        markdown("## Loss ##"),
        markdown("### Loss", "", "#hashtag"),
        code(shown()),
    )
    links = [record["link"].split("#")[1] for record in read_findings(path)]
    assert links == ["is-it-a-bowl-yes-mostly", "is-it-a-bowl-yes-mostly", "loss-1"]


HEADINGS = {
    "Is it a bowl? (yes, mostly)": "is-it-a-bowl-yes-mostly",
    "From untrained to trained": "from-untrained-to-trained",
    "What SGD, Adam & RMSProp do": "what-sgd-adam--rmsprop-do",
    "α = 0: the start — and the end": "α--0-the-start--and-the-end",
    "The `Line.between` call": "the-linebetween-call",
    "A *flat* minimum, a **sharp** one": "a-flat-minimum-a-sharp-one",
    "Batch norm's 4 policies/functions": "batch-norms-4-policiesfunctions",
    "Why [Goodfellow's line](https://arxiv.org/abs/1412.6544) is plain": (
        "why-goodfellows-line-is-plain"
    ),
    r"The plateau at $\alpha = 0$ of the line": "the-plateau-at--of-the-line",
    "snake_case and scale-invariant": "snake_case-and-scale-invariant",
    "Résumé": "résumé",
}


@pytest.mark.parametrize("heading", HEADINGS)
def test_links_are_the_anchors_that_jupyter_book_makes(heading, tmp_path):
    path = notebook(tmp_path, markdown(f"## {heading}"), code(shown()))
    (record,) = read_findings(path)
    assert record["link"] == f"02_a_line.ipynb#{HEADINGS[heading]}"
    assert record["heading"] == heading


def test_the_expected_anchors_are_those_of_myst():
    base = pytest.importorskip("myst_parser.mdit_to_docutils.base")
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    parser = MarkdownIt().use(dollarmath_plugin)
    for heading, slug in HEADINGS.items():
        tree = SyntaxTreeNode(parser.parse(f"## {heading}")).children[0]
        assert base.compute_unique_slug(tree, set()) == slug
    again = SyntaxTreeNode(parser.parse("## Loss")).children[0]
    assert base.compute_unique_slug(again, {"loss"}) == "loss-1"
    assert base.compute_unique_slug(again, {"loss", "loss-1"}) == "loss-1-2"


def test_the_index_holds_every_figure_of_both_sources(tmp_path):
    # The report has Figs. 1 to 8, the paper on multi-point optimisation 1 to 6 with 4a and 4b.
    assert len(FIGURES) == 15 and sum(figure.startswith("Report") for figure in FIGURES) == 8
    first = shown(measured="|Δ| < 0.1 | sharp", here="a|b")
    notebook(tmp_path, markdown("# A line"), code(first))
    other = shown(figure="MPO Fig. 4a", verdict="not reproduced")
    notebook(tmp_path, markdown("# Norms"), code(other), name="10_norms.ipynb")
    path = write_index(tmp_path)
    assert path == tmp_path / "figures.md"
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", text, flags=re.MULTILINE)[1:]
    assert [re.sub(r"^\[(.+)\]\(.*\)$", r"\1", row[0]) for row in rows] == list(FIGURES)
    assert rows[0] == ("Report Fig. 1", "in preparation", "chapter 1")
    assert rows[1] == (
        "[Report Fig. 2](#report-fig-2)",
        "**partly reproduced**",
        "[chapter 2](02_a_line.ipynb#a-line)",
    )
    below = text[text.index("## Report Fig. 2\n") :]
    assert "- **Measured:** |Δ| < 0.1 | sharp\n- **In the source:** maxout network" in below
    assert "- **Here:** a|b\n- **Cost:** seconds, computed in the chapter\n" in below
    assert "**Not reproduced**, [chapter 10](10_norms.ipynb#norms)." in below


def test_a_figure_of_two_chapters_has_two_findings(tmp_path):
    one = shown(figure="MPO Fig. 1", paper="Fashion-MNIST and CIFAR-10")
    for name in ("08_sights", "09_photographs"):
        notebook(tmp_path, markdown("# T"), code(one), name=f"{name}.ipynb")
    index = write_index(tmp_path).read_text()
    assert index.count("| [MPO Fig. 1](#mpo-fig-1) |") == 2
    assert index.count("## MPO Fig. 1\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("partly reproduced", "more or less", "verdict: expected one of .* got 'more or less'"),
        ("Report Fig. 2", "Report Fig. 9", "figure: expected one of .* got 'Report Fig. 9'"),
        ("claim:", "glaim:", "a finding lacks claim"),
    ],
)
def test_a_finding_that_was_edited_by_hand_is_refused(old, new, message, tmp_path):
    notebook(tmp_path, markdown("# T"), code(shown().replace(old, new)))
    with pytest.raises(ValueError, match=rf"02_a_line\.ipynb: {message}"):
        write_index(tmp_path)
    assert not (tmp_path / "figures.md").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "confirmed"}, "verdict: expected one of .*'reproduced'.* got 'confirmed'"),
        ({"figure": "Fig. 2"}, "figure: expected one of .*'Report Fig. 2'.* got 'Fig. 2'"),
    ],
)
def test_an_unknown_verdict_or_figure_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        finding(**(FINDING | changes))


def test_chapters_come_in_their_order(tmp_path):
    for name in ("10_b", "02_a", "09_c", "11_a", "notes", "2_x"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    (tmp_path / "03_folder").mkdir()
    assert [path.stem for path in chapters(tmp_path)] == ["02_a", "09_c", "10_b", "11_a"]
