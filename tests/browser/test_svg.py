"""A figure in a page: its ground is the page's, in light and in dark, whoever chose."""

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from widget_pages import OpenPage, fill

from landscape_lib import plots, svg


@pytest.mark.parametrize("system", ["light", "dark"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_figure_has_the_colours_of_its_page(
    open_page: OpenPage, write: Path, theme: str, system: str
) -> None:
    with plt.rc_context():
        plots.use_style()
        figure, ax = plt.subplots()
        ax.set_title("words")
        drawn = base64.b64encode(svg.text_of(figure).encode()).decode()
        plt.close(figure)
    image = f'<img alt="Nothing." src="data:image/svg+xml;base64,{drawn}">'
    page = open_page(fill(write, image, theme=theme), dark=system == "dark")
    shot = page.locator("img").screenshot()
    seen = np.asarray(Image.open(io.BytesIO(shot)).convert("L")).astype(int)
    ground = {"light": 254, "dark": 18}[theme]
    assert abs(seen[5, 5] - ground) <= 1
    assert np.abs(seen - ground).max() > 150  # axes and words stand out


def test_the_data_below_a_figure_can_be_saved(open_page: OpenPage, write: Path) -> None:
    alphas = np.linspace(0, 1, 3)
    data = xr.Dataset({"loss": ("alpha", alphas**2)}, {"alpha": alphas})
    with plt.rc_context():
        plots.use_style()
        figure, ax = plt.subplots()
        shown = plots.downloads(figure, data, name="line")
        plt.close(figure)
    page = open_page(fill(write, shown.html))
    page.get_by_text("to download").click()
    for ending in ("csv", "svg"):
        with page.expect_download() as saved:
            page.get_by_role("link", name=f"line.{ending}").click()
        assert saved.value.suggested_filename == f"line.{ending}"
        first = Path(saved.value.path()).read_text("utf-8").splitlines()[0]
        assert first.startswith({"csv": "alpha,loss", "svg": "<?xml"}[ending])
