"""Surfaces that turn: what the HTML holds. tests/browser turns them."""

import gzip
import json
import re
from typing import Any

import numpy as np
import pytest
import xarray as xr

from landscape_lib import widgets
from landscape_lib.widgets import html

SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
SIDE = np.linspace(-1, 1, 51)
BUMPS = 2 + SIDE[:, None] ** 2 + 3 * SIDE**2 + np.sin(5 * SIDE[:, None]) * np.cos(4 * SIDE)


def data_of(widget: widgets.Widget) -> dict[str, Any]:
    (packed,) = re.findall(r'<script type="application/json">(.*?)</script>', widget.html, re.S)
    return json.loads(packed)


def heights(widget: widgets.Widget) -> np.ndarray:
    """Read the heights back, from 0 to 1, as the script does."""
    data = data_of(widget)
    width, signs, codes = len(data["y"]), iter(data["z"]), []
    for sign in signs:
        a, b, c = (codes[-k] if len(codes) >= k else 0 for k in (1, width, width + 1))
        rest = SIGNS.find(sign) - 32
        whole = sign == "~"
        codes.append(
            64 * SIGNS.find(next(signs)) + SIGNS.find(next(signs)) if whole else a + b - c + rest
        )
    grid = np.array(codes, dtype=float).reshape(-1, width)
    return np.where(grid == 4095, np.nan, grid / 4094)


def surface(z: Any, **changes: Any) -> widgets.Widget:
    given = {"x": range(len(z)), "y": range(len(z[0])), "alt": "A slope."}
    return widgets.surface(z, **given | changes)


@pytest.mark.parametrize("seed", [None, 0])
def test_heights_arrive_to_one_part_in_4000_smooth_or_not(seed: int | None) -> None:
    grid = BUMPS if seed is None else np.random.default_rng(seed).normal(size=(7, 9))
    expected = (grid - grid.min()) / np.ptp(grid)
    np.testing.assert_allclose(heights(surface(grid)), expected, atol=0.5 / 4094 + 1e-12)


def test_a_logarithmic_surface_has_the_logarithms_as_heights() -> None:
    got = heights(surface([[1e-3, 1e-2], [1e-1, 1.0]], log=True))
    np.testing.assert_allclose(got, [[0, 1 / 3], [2 / 3, 1]], atol=1e-3)


@pytest.mark.parametrize("log", [False, True])
def test_what_is_not_finite_is_a_gap_and_is_counted(log: bool) -> None:
    widget = surface([[1, np.nan, 2], [np.inf, 3, -np.inf]], log=log)
    np.testing.assert_array_equal(np.isnan(heights(widget)), [[0, 1, 0], [1, 0, 1]])
    assert "Gaps: 3 of 6 points have no finite value." in widget.html
    assert (
        "Lowest loss 1 at &#945; 0, &#946; 0; highest loss 3 at &#945; 1, &#946; 1." in widget.html
    )
    assert "Gaps" not in surface([[1, 2], [3, 4]]).html


def test_a_dataset_of_a_plane_is_taken_as_it_is_in_any_order() -> None:
    grid = np.array([[1.0, 2, 3], [4, 5, 6]])
    dims = {"alpha": [0.5, -0.5], "beta": [0.0, 1, 2]}
    plane = xr.Dataset({"loss": (("alpha", "beta"), grid)}, coords=dims)
    expected = surface(grid[::-1], x=[-0.5, 0.5], y=[0, 1, 2])
    for given in (plane, plane.transpose("beta", "alpha"), plane.sortby("alpha")):
        assert widgets.surface(given, alt="A slope.") == expected


def test_a_path_says_how_much_of_it_is_outside() -> None:
    widget = surface([[1, 2], [3, 4]], path=[(0, 0), (0.5, 0.5), (2, 2), (np.nan, 0)])
    assert "2 of its 4 points lie outside the picture." in widget.html
    assert data_of(widget)["path"][:2] == [[0, 0], [0.5, 0.5]]


@pytest.mark.parametrize("log", [False, True])
def test_a_flat_surface_lies_on_the_ground(log: bool) -> None:
    assert (heights(surface(np.full((3, 3), 2.0), log=log)) == 0).all()


def test_what_a_surface_adds_to_a_page_is_small() -> None:
    widget = widgets.surface(BUMPS, SIDE, SIDE, alt="Bumps.")
    before, after = html._style_and_script("frames").split("VIEWS.frames = ")
    own = (
        widget.html[: widget.html.index("<style>")]
        + widget.html[widget.html.index("VIEWS.surface = ") : widget.html.index("const followPage")]
    )
    assert before in widget.html.replace(widget.key, "WIDGET_KEY") and "followPage" in after
    assert len(data_of(widget)["z"]) < 1.2 * BUMPS.size  # a sign for nearly every height
    assert len(own) < 17_000 and len(gzip.compress(own.encode())) < 10_000


PLANE = xr.Dataset(
    {"loss": (("alpha", "beta"), [[1.0, 2], [3, 4]])}, {"alpha": [0, 1], "beta": [0, 1]}
)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"z": PLANE}, TypeError, "x, y: given beside a dataset"),
        (
            {"z": PLANE, "x": None, "y": None, "variable": "accuracy"},
            ValueError,
            "z: given .* 'acc",
        ),
        ({"z": PLANE.isel(beta=0), "x": None, "y": None}, ValueError, "z: given a dataset with"),
        ({"x": None}, TypeError, "x, y: given none"),
        ({"z": [[1, 2, 3], [4, 5, 6]]}, ValueError, r"z: given shape \(2, 3\), expected \(2, 2\)"),
        ({"x": [1, 0]}, ValueError, "x: given .* increasing"),
        ({"z": np.full((2, 2), np.nan)}, ValueError, "z: given .* 0 finite values"),
        ({"log": True, "z": [[0, 1], [2, 3]]}, ValueError, "log: given heights from 0"),
        ({"path": [1, 2]}, ValueError, "path: given shape"),
        ({"start": (0, 5)}, ValueError, "start: given"),
        ({"alt": " "}, ValueError, "alt: given an empty text"),
        ({"z": np.ones((129, 2)), "x": range(129)}, ValueError, "at most 128 a side"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type, message: str) -> None:
    given = {"z": [[1, 2], [3, 4]], "x": [0, 1], "y": [0, 1], "alt": "A slope."} | changes
    with pytest.raises(error, match=message):
        widgets.surface(**given)
