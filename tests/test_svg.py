"""Figures as SVG: the same each time, small, and with colours for a light and for a dark page."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from landscape_lib import page, plots, svg


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plt.rc_context(), plt.style.context("default"):
        plt.switch_backend("agg")
        plots.use_style()
        yield
        plt.close("all")


def curve() -> Figure:
    figure, ax = plt.subplots()
    ax.plot([0, 1], [1, 0], "k:", label="black")
    ax.text(0.5, 0.5, "black words", color="black")
    ax.legend()
    return figure


def surface() -> xr.Dataset:
    side = np.linspace(-1, 1, 51)
    values = side[:, None] ** 2 + side**2
    return xr.Dataset({"loss": (("alpha", "beta"), values)}, {"alpha": side, "beta": side})


def test_the_same_figure_is_the_same_text() -> None:
    assert svg.text_of(curve()) == svg.text_of(curve())


def test_whatever_has_the_colour_of_ink_or_ground_is_replaced_on_a_dark_page() -> None:
    text = svg.text_of(curve())
    style, drawing = re.split(r"(?<=</style>)", text, maxsplit=1)
    replaced = re.findall(r"\[style\*='(\w+: #\w+)'\]", style)
    assert replaced and "prefers-color-scheme: dark" in style
    inks = set(re.findall(r"(?:fill|stroke): #\w+", drawing))
    # Colours that say something stay; there are none here.
    assert inks - {"fill: #000000"} <= {*replaced}
    assert {f"fill: {svg.INK}", f"stroke: {svg.INK}", f"fill: {svg.GROUND}"} <= inks


def test_every_way_to_save_an_svg_has_both_sets_of_colours(tmp_path: Path) -> None:
    figure, buffer = curve(), io.BytesIO()
    figure.savefig(tmp_path / "figure.svg")
    figure.savefig(buffer, format="svg")
    for text in ((tmp_path / "figure.svg").read_text("utf-8"), buffer.getvalue().decode()):
        assert text.count("prefers-color-scheme") == 1


def test_many_shapes_become_one_picture() -> None:
    plots.heat(surface())  # the map, and its colour bar
    heavy = svg.text_of(plt.gcf())
    assert heavy.count("<image") == 2 and len(heavy) < 100_000
    side = np.linspace(-1, 1, 60)
    ax = plt.figure().add_subplot(projection="3d")
    ax.plot_surface(*np.meshgrid(side, side), side[:, None] + side, rcount=60, ccount=60)
    assert len(svg.text_of(plt.gcf())) < 200_000
    assert "<image" not in svg.text_of(curve())


def test_a_small_map_has_no_seams_between_its_cells() -> None:
    plots.heat(surface().isel(alpha=slice(0, 3), beta=slice(0, 3)), levels=0, colorbar=False)
    assert svg.text_of(plt.gcf()).count("<image") == 1


def test_words_are_legible_on_a_phone() -> None:
    column, widest = 358, 6.6  # pixels of the text on a screen of 390; inches
    points = [label.get_size() for label in plt.subplots()[1].get_xticklabels()]
    assert min(points) / 72 / widest * column >= 9


def test_notebooks_show_svg_once_the_style_is_set() -> None:
    lines = (
        "import matplotlib; matplotlib.use('module://matplotlib_inline.backend_inline')",
        "from IPython.core.interactiveshell import InteractiveShell",
        "shell = InteractiveShell.instance()",
        "import matplotlib.pyplot as plt, landscape_lib.plots as plots",
        "plots.use_style()",
        "data, _ = shell.display_formatter.format(plt.subplots()[0])",
        "print(sorted(data), 'prefers-color-scheme' in data['image/svg+xml'])",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['image/svg+xml', 'text/plain'] True", done.stderr


def test_a_figure_takes_less_room_than_matplotlib_writes_and_holds_the_same_shapes() -> None:
    """Comments and names of groups go, lines join, and digits beyond a hundredth of a point go."""
    figure, plain = curve(), io.StringIO()
    FigureCanvasSVG(figure).print_figure(plain, format="svg", bbox_inches="tight")
    short, long = svg.text_of(figure), plain.getvalue()
    assert len(short) < 0.85 * len(long)
    assert "<g id=" in long and "<g id=" not in short and ">\n<" not in short
    found, named = (re.findall(f, short) for f in (r"(?:href='|url\()#([\w-]+)", r"id='([\w-]+)'"))
    assert found and set(found) <= set(named)

    def numbers(text: str) -> list[float]:
        paths = re.findall(r"""\sd=["']([^"']*)["']""", text)
        return [float(n) for path in paths for n in re.findall(r"-?[\d.]+", path)]

    np.testing.assert_allclose(numbers(short), numbers(long), rtol=0, atol=0.01)


def test_a_figure_and_its_data_can_be_saved_from_the_page() -> None:
    data = surface().isel(alpha=slice(0, 2), beta=slice(0, 2))
    shown = plots.downloads(curve(), data, name="bowl")
    links = re.findall(r'download="([^"]+)" href="data:([\w/+]+);[^,]*,([^"]+)"', shown.html)
    assert len(links[1][2]) < 4 / 3 * len(svg.text_of(curve()))  # less than base64 takes
    (csv_name, csv_kind, csv), (svg_name, svg_kind, drawn) = links
    assert (csv_name, csv_kind) == ("bowl.csv", "text/csv")
    assert unquote(csv).splitlines() == [
        "alpha,beta,loss",
        "-1,-1,2",
        "-1,-0.96,1.9216",
        "-0.96,-1,1.9216",
        "-0.96,-0.96,1.8432",
    ]
    assert (svg_name, svg_kind) == ("bowl.svg", "image/svg+xml")
    assert unquote(drawn) == svg.text_of(curve())
    assert plots.downloads(curve(), data.loss, name="bowl") == shown


def test_downloads_that_would_make_a_page_slow_are_refused() -> None:
    large = surface().interp(alpha=np.linspace(-1, 1, 300), beta=np.linspace(-1, 1, 300))
    with pytest.raises(ValueError, match="figure, dataset: expected 1,000,000 bytes at most"):
        plots.downloads(curve(), large)


def test_a_widget_has_its_data_to_save_and_each_set_of_dimensions_a_file() -> None:
    data = surface().isel(alpha=slice(0, 2), beta=slice(0, 2))
    data = data.assign(foot=("step", [0.5, 0.25, 0.125]))
    shown = plots.downloads(page.Shown("<b>a slider</b>", "a slider"), data, name="path")
    links = re.findall(r'download="([^"]+)" href="data:text/csv[^,]*,([^"]+)"', shown.html)
    assert [name for name, _ in links] == ["path_loss.csv", "path_foot.csv"]
    rows = [unquote(csv).splitlines() for _, csv in links]
    assert len(rows[0]) == 5 and rows[1] == ["step,foot", "0,0.5", "1,0.25", "2,0.125"]
    assert "svg" not in shown.html and "figure" not in shown.html


def test_a_slider_is_shown_above_its_data_whatever_draws_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", seen.append)
    slider, data = page.Shown("<b>a slider</b>", "a slider"), xr.DataArray([1.0], dims="x")
    plots.downloads(slider, data)
    plots.downloads(curve(), data)
    assert seen == [slider]


def test_what_is_no_dataset_is_named() -> None:
    with pytest.raises(TypeError, match="dataset: expected one of xarray, got ndarray"):
        plots.downloads(curve(), np.zeros(3))  # type: ignore[arg-type]
