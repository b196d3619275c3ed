"""Sliders without a kernel: what the HTML holds. tests/browser moves them."""

import base64
import io
import json
import re
from html import unescape
from typing import Any
from urllib.parse import unquote

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from landscape_lib import svg, widgets
from landscape_lib.mpo import patterns

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
ALPHAS = np.linspace(0, 1, 3)


def data_of(widget: widgets.Widget) -> dict[str, Any]:
    packed = re.findall(r'<script type="application/json">(.*?)</script>', widget.html, re.S)
    assert len(packed) == 1
    return json.loads(packed[0])


def frames(**changes: Any) -> widgets.Widget:
    given = {"pictures": [PNG, PNG], "sliders": [("γ", [0.1, 1])], "alt": "A valley."}
    return widgets.frames(**given | changes)


def paths(**changes: Any) -> widgets.Widget:
    given: dict[str, Any] = {
        "background": np.arange(12.0).reshape(3, 4),
        "paths": {"SGD": [[(0, 0), (2, 1)], [(0, 0), (1, 1), (9, 9)]]},
        "losses": {"SGD": [[3, 2], [3, 1, np.inf]]},
        "extent": (0, 2, -1, 1),
        "xlabel": "x",
        "ylabel": "y",
        "choice": ("step size", [0.1, 1]),
        "alt": "A slope.",
    }
    return widgets.paths(**given | changes)


def walk(**changes: Any) -> widgets.Widget:
    given: dict[str, Any] = {
        "alphas": ALPHAS,
        "curves": {"train": [3, 2, 1], "test": [3, np.nan, np.inf]},
        "images": np.zeros((2, 4, 5)),
        "probabilities": np.full((3, 2, 2), 0.5),
        "labels": [0, 1],
        "classes": ["cat", "dog"],
        "alt": "Two curves.",
    }
    return widgets.walk(**given | changes)


def sights(**changes: Any) -> widgets.Widget:
    """Three columns and two rows of cells."""
    given: dict[str, Any] = {
        "alphas": [-1, 0, 1],
        "betas": [-1, 0],
        "loss": [[1, 2], [3, 4], [5, 6]],
        "accuracy": np.full((3, 2), 0.5),
        "images": np.zeros((2, 4, 5)),
        "probabilities": np.full((3, 2, 2, 2), 0.5),
        "labels": [0, 1],
        "classes": ["cat", "dog"],
        "alt": "A slope.",
    }
    return widgets.sights(**given | changes)


def surface(**changes: Any) -> widgets.Widget:
    given: dict[str, Any] = {"z": [[1, 2], [3, 4], [5, 6]], "x": [0, 1, 2], "y": [0, 1]}
    return widgets.surface(**given | {"alt": "A slope."} | changes)


def drawing(**changes: Any) -> widgets.Widget:
    given: dict[str, Any] = {"pattern": [".#", "##"]}
    return widgets.drawing(**given | changes)


PICTURES = {"frames": frames, "paths": paths, "walk": walk, "sights": sights, "surface": surface}
MAKERS = PICTURES | {"drawing": drawing}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_content_gives_the_same_html(kind: str) -> None:
    one, two, other = MAKERS[kind](), MAKERS[kind](), MAKERS[kind](caption="another")
    assert one == two and one._repr_html_() == two.html
    assert other.key != one.key
    assert repr(one) == f"<{kind} widget {one.key}>"


@pytest.mark.parametrize("kind", MAKERS)
def test_the_html_needs_nothing_from_elsewhere(kind: str) -> None:
    html = MAKERS[kind]().html
    assert html.isascii()  # right in a page of any encoding
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(|require\(""", html)
    assert not re.search(r"\sid=", html)  # so that a page may hold it twice


@pytest.mark.parametrize("kind", PICTURES)
def test_text_is_never_markup(kind: str) -> None:
    nasty = '</script><img src=x onerror="boom"> & "quotes"'
    widget = MAKERS[kind](alt=nasty, caption=nasty)
    assert "<img src=x" not in widget.html and "</script><img" not in widget.html
    assert "&lt;img src=x onerror=&quot;boom&quot;&gt; &amp;" in widget.html


def test_labels_are_never_markup() -> None:
    assert "<b>" not in frames(sliders=[("<b>", ["<b>", "</script>"])]).html
    assert "<b>" not in paths(xlabel="<b>", paths={"<b>": [[(0, 0)], [(0, 0)]]}, losses=None).html
    assert "<b>" not in walk(classes=["<b>", "</b>"], curves={"<b>": [1, 2, 3]}).html
    assert "<b>" not in sights(classes=["<b>", "</b>"], xlabel="<b>", caption="<b>").html
    assert "<b>" not in drawing(caption="<b>").html


def test_every_slider_is_labelled_and_shows_its_value() -> None:
    html = frames(sliders=[("γ & co", [0.1, -1])], start=[1]).html
    assert '<span class="lw-name">&#947; &amp; co</span><input type="range"' in html
    assert 'aria-valuetext="&#8722;1"' in html and ">&#8722;1</output>" in html


def test_frames_draws_figures_on_white_and_closes_them() -> None:
    figures = [plt.figure(figsize=(4, 3), facecolor="black") for _ in range(2)]
    html = frames(pictures=figures).html
    assert not plt.get_fignums()
    pngs = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)" alt="A valley."', html)
    assert len(pngs) == 2
    image = Image.open(io.BytesIO(base64.b64decode(pngs[0])))
    assert image.size == (960, 720)
    assert image.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_frames_shows_a_document_of_svg_as_an_image_with_the_scheme_of_the_page() -> None:
    figure = plt.figure()
    document = svg.text_of(figure)
    plt.close(figure)
    html = frames(pictures=[document] * 2).html
    sources = re.findall(r'<img class="dark-light" [^>]*svg[+]xml;[^,]*,([^"]+)', html)
    assert [unquote(source) for source in sources] == [document] * 2


def test_frames_gives_each_picture_its_text_and_shows_one() -> None:
    grid = [["<i>a</i>", PNG], ["<svg></svg>", PNG], ["c", PNG]]
    sliders = [("γ", [0.1, 0.2, 0.3]), ("seed", ["one", "two"])]
    widget = frames(
        pictures=grid, sliders=sliders, alt=lambda gamma, seed: f"{seed} at {gamma}", start=[1, 1]
    )
    texts = [f"{seed} at {gamma}" for gamma in (0.1, 0.2, 0.3) for seed in ("one", "two")]
    assert data_of(widget)["alt"] == texts
    shown = re.findall(r'class="lw-frame dark-light lw-shown"[^>]*alt="([^"]+)"', widget.html)
    assert shown == ["two at 0.2"]
    nested = [texts[:2], texts[2:4], texts[4:]]
    again = frames(pictures=grid, sliders=sliders, alt=nested, start=[1, 1])
    assert again == widget


def test_paths_keeps_what_is_off_the_map_and_what_is_not_finite() -> None:
    run = [(0, -1), (2, 1), (1, 0), (4, 0), (np.nan, 0), (0, np.inf), (1e300, 0)]
    data = data_of(paths(paths={"SGD": [run, run]}, losses={"SGD": [[1 / 3] * 6 + [np.nan]] * 2}))
    points = data["points"][0][0]
    assert points[:8] == [0, 0, 10000, 10000, 5000, 5000, 20000, 5000]
    assert points[8:] == [None, 5000, 0, None, 1000000000, 5000]
    assert data["losses"][0][1] == [0.3333] * 6 + ["not a number"]
    assert data["sliders"][1] == {"label": "step", "values": [str(k) for k in range(7)]}


def picture(widget: widgets.Widget) -> Image.Image:
    png = base64.b64decode(data_of(widget)["picture"].split(",")[1])
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_the_map_lies_from_edge_to_edge_with_row_0_at_the_bottom() -> None:
    y, x = np.mgrid[0:1:41j, 0:1:41j]
    wide = picture(paths(background=x + 10 * y, extent=(0, 4, 0, 2), cmap="gray"))
    assert wide.size == (700, 350)  # the units of both axes are equally long
    left_bottom, right_top = wide.getpixel((2, 347)), wide.getpixel((697, 2))
    assert left_bottom[0] < 15 and right_top[0] > 240
    rows = np.median(np.asarray(wide)[:, :, 0], axis=1)[5::30]
    assert (np.diff(rows) < 0).all()  # darker, that is lower, towards the bottom


def test_the_map_does_not_depend_on_the_style_of_the_notebook() -> None:
    plain = paths()
    with plt.rc_context({"figure.constrained_layout.use": True, "figure.dpi": 50}):
        with plt.style.context("ggplot"):
            assert paths() == plain


def test_the_map_hatches_what_is_not_finite() -> None:
    background = np.ones((20, 20)) * np.arange(20)
    assert "Hatched" not in paths(background=background).html
    for hole in (np.nan, np.inf, -np.inf):
        holed = background.copy()
        holed[10:, :10] = hole
        widget = paths(background=holed, cmap="Reds", extent=(0, 1, 0, 1))
        assert "Hatched: no finite value." in widget.html
        corner = picture(widget).crop((0, 0, 300, 300))
        colours = [colour for _, colour in corner.getcolors(90000)]
        assert len({max(c) - min(c) < 12 for c in colours}) == 1  # greys only
        assert len(colours) > 1  # and lines in them


@pytest.mark.parametrize(
    "levels, edges",
    [(2, [0, 5.5, 11]), ([1, 3, 4], [1, 3, 4]), ("log", np.geomspace(1, 11, 25))],
)
def test_levels(levels: Any, edges: Any) -> None:
    data = data_of(paths(levels=levels))
    assert data["edges"] == pytest.approx(list(edges), rel=1e-3)
    assert len(data["colours"]) == len(edges) - 1


def test_a_flat_map_can_be_drawn() -> None:
    assert picture(paths(background=np.ones((2, 2)))).size == (700, 700)
    assert picture(paths(background=np.ones((2, 2)), levels="log")).size == (700, 700)


def test_walk_predicts_from_the_numbers_before_they_are_rounded() -> None:
    chances = np.full((3, 2, 3), 0.2)
    chances[0, 0] = 0.33333, 0.33334, 0.33333
    chances[1, 1, 2] = 0.6
    chances[2, 0, 1] = np.nan
    data = data_of(walk(probabilities=chances, classes=["a", "b", "c"]))
    assert data["guesses"] == [[1, 0], [0, 2], [-1, 0]]
    assert data["probabilities"][0][0] == [333, 333, 333]
    assert data["curves"][1]["values"] == [3.0, "not a number", "∞"]


def test_walk_shows_images_exactly() -> None:
    rng = np.random.default_rng(0)
    for shape in [(2, 4, 5), (2, 4, 5, 3)]:
        pixels = rng.integers(0, 256, shape)
        images = data_of(walk(images=pixels / 255))["images"]
        for image, expected in zip(images, pixels, strict=True):
            png = base64.b64decode(image["src"].split(",")[1])
            assert (np.asarray(Image.open(io.BytesIO(png))) == expected).all()
    assert [image["alt"] for image in images] == ["image 1: cat", "image 2: dog"]


def test_walk_begins_at_the_nearest_point_and_shows_enough_digits() -> None:
    widget = walk(alphas=[-0.25, 0.125, 1], start=0.2)
    assert data_of(widget)["sliders"][0]["values"] == ["−0.250", "0.125", "1.000"]
    assert 'value="1" aria-valuetext="0.125"' in widget.html


def test_walk_makes_room_for_bands_and_for_values_whose_band_is_unknown() -> None:
    data = data_of(walk(bands={"train": [0.5, 0, np.nan]}))  # CASES N21
    assert data["range"] == pytest.approx([1 - 0.125, 3.5 + 0.125])
    assert data_of(walk(curves={"flat": [2, 2, 2]}))["range"] == [1.5, 2.5]
    assert data_of(walk(curves={"train": [0, 1, 10]}, log=True))["range"][0] > 0


def test_sights_keeps_the_class_and_its_probability_of_every_cell_and_image() -> None:
    """The class comes from the numbers before they are rounded to percent."""
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(3), (3, 2, 2))
    chances[0, 1, 0] = 0.33333, 0.33334, 0.33333
    chances[2, 0, 1, 2] = np.nan
    data = data_of(sights(probabilities=chances, classes=["a", "b", "c"]))
    guesses, percent = (
        np.frombuffer(base64.b64decode(data[name]), np.uint8).reshape(3, 2, 2)
        for name in ("guesses", "percent")
    )
    assert guesses[0, 1, 0] == 1 and percent[0, 1, 0] == 33
    assert guesses[2, 0, 1] == 255
    known = guesses != 255
    assert known.sum() == 11
    np.testing.assert_array_equal(guesses[known], chances.argmax(axis=-1)[known])
    np.testing.assert_allclose(percent[known], 100 * chances.max(axis=-1)[known], atol=0.5)


def test_sights_shows_four_digits_and_what_is_not_finite() -> None:
    loss = [[1 / 3, 2], [np.inf, np.nan], [0, 12345.6]]
    widget = sights(loss=loss, accuracy=[[1 / 3, 1], [0.5, np.nan], [0, 0]])
    data = data_of(widget)
    assert data["loss"] == [0.3333, 2, "∞", "not a number", 0, 12350]
    assert data["accuracy"] == [0.3333, 1, 0.5, "not a number", 0, 0]
    assert "Hatched: no finite value." in widget.html
    assert "Hatched" not in sights().html


def test_the_map_of_sights_has_a_pixel_for_each_cell_and_beta_downwards() -> None:
    """Colours are those of equal ratios of the loss; what is not finite is transparent."""
    data = data_of(sights(loss=[[0.01, 0], [1, np.nan], [0.1, np.inf]]))
    image = Image.open(io.BytesIO(base64.b64decode(data["picture"].split(",")[1])))
    assert image.size == (3, 2)
    pixels = np.asarray(image.convert("RGBA"))
    assert pixels[:, :, 3].tolist() == [[255] * 3, [255, 0, 0]]
    low, middle, high = (data["colours"][k] for k in (0, 12, 23))
    seen = [f"#{bytes(pixels[at][:3]).hex()}" for at in [(0, 0), (0, 2), (0, 1), (1, 0)]]
    assert seen == [low, middle, high, low]  # a loss of 0 has the colour of the lowest
    assert (low, high) == ("#440154", "#fde725")  # viridis
    np.testing.assert_allclose(data["edges"], np.geomspace(0.01, 1, 25), rtol=1e-3)


def test_sights_outlines_the_low_cells_of_the_pattern() -> None:
    widget = sights(pattern=["#..", ".#."])
    data = data_of(widget)
    assert data["low"] == "10" + "01" + "00"  # beta runs faster than alpha, as in the map
    drawn = re.findall(r"M(\d) (\d)([hv])(\d)", data["outline"])
    unit = {
        (int(x) + k * (way == "h"), int(y) + k * (way == "v"), way)
        for x, y, way, length in drawn
        for k in range(int(length))
    }
    around = {
        (x + right, y + down, way)
        for x, y in [(0, 0), (1, 1)]
        for right, down, way in [(0, 0, "h"), (0, 1, "h"), (0, 0, "v"), (1, 0, "v")]
    }
    assert unit == around
    assert "White line: the outline of the LOW cells" in widget.html
    assert data_of(sights())["outline"] is None and "White line" not in sights().html


def test_sights_begins_at_the_nearest_cell_and_cells_reach_half_a_step_beyond() -> None:
    data = data_of(sights(alphas=[-0.5, 0, 0.5], start=(0.3, -9)))
    assert data["extent"] == [-0.75, 0.75, -1.5, 0.5]
    assert [control["values"] for control in data["sliders"]] == [
        ["−0.5", "0.0", "0.5"],
        ["−1", "0"],
    ]
    values = re.findall(r'value="(\d)" aria-valuetext', sights(start=(0.9, -9)).html)
    assert values == ["2", "0"]


def test_the_code_of_a_drawing_makes_its_pattern() -> None:
    pattern = np.random.default_rng(0).random((24, 7)) < 0.5
    widget = drawing(pattern=pattern, name="mine", caption="Draw.")
    code = unescape(re.findall(r"<pre [^>]*>(.*?)</pre>", widget.html, re.S)[0])
    made: dict[str, Any] = {}
    exec(code.replace("ll.patterns.", "patterns."), {"patterns": patterns}, made)
    np.testing.assert_array_equal(made["mine"], pattern)
    assert "Draw." in widget.html and "lw-sliders" not in widget.html.split("<style>")[0]


def test_a_realistic_page_stays_small() -> None:
    rng = np.random.default_rng(0)
    walked = walk(
        alphas=np.linspace(-0.25, 1.25, 101),
        curves={name: rng.random(101) for name in ("train", "test")},
        bands={name: rng.random(101) for name in ("train", "test")},
        images=rng.random((8, 28, 28)),
        probabilities=rng.dirichlet(np.ones(10), (101, 8)),
        labels=range(8),
        classes=[str(c) for c in range(10)],
    )
    assert len(walked.html) < 120_000
    seen = sights(
        alphas=np.arange(50) - 25,
        betas=np.arange(50) - 25,
        loss=rng.lognormal(size=(50, 50)),
        accuracy=rng.random((50, 50)),
        images=rng.random((8, 28, 28)),
        probabilities=rng.dirichlet(np.ones(10), (50, 50, 8)),
        labels=range(8),
        classes=[str(c) for c in range(10)],
        pattern=patterns.random_mask(50),
    )
    assert len(seen.html) < 180_000
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    runs = {f"optimiser {k}": rng.normal(size=(8, 101, 2)) for k in range(4)}
    losses = {name: np.sum(run**2, axis=2) for name, run in runs.items()}
    drawn = paths(
        background=x**2 + 20 * (y - x**2) ** 2,
        paths=runs,
        losses=losses,
        choice=("step size", range(8)),
    )
    assert len(drawn.html) < 300_000


BAD = [
    (frames, {"sliders": []}, ValueError, "sliders: given 0, expected one or two"),
    (frames, {"sliders": [("γ", [1, 2, 3])]}, ValueError, "pictures: expected a list of 3"),
    (frames, {"sliders": [("γ", [])]}, ValueError, "sliders[0]: given no values"),
    (frames, {"sliders": ["γ"]}, TypeError, "sliders[0]: given 'γ', expected a pair"),
    (frames, {"sliders": [("γ", "12")]}, TypeError, "expected a pair (label, values)"),
    (frames, {"sliders": [(1, [1, 2])]}, TypeError, "sliders[0]: given int, expected a text"),
    (frames, {"pictures": [PNG, 3]}, TypeError, "pictures[1]: given int, expected a matplotlib"),
    (frames, {"pictures": [PNG, b"GIF89a"]}, ValueError, "pictures[1]: given bytes that begin"),
    (frames, {"alt": ""}, ValueError, "alt: given an empty text"),
    (frames, {"alt": ["one"]}, ValueError, "alt: expected a list of 2"),
    (frames, {"alt": [1, 2]}, TypeError, "alt: given int, expected a text"),
    (frames, {"start": [2]}, ValueError, "start: given 2, expected an index from 0 to 1"),
    (frames, {"start": [0, 0]}, ValueError, "start: given [0, 0], expected one index"),
    (paths, {"background": np.ones(3)}, ValueError, "background: given shape (3,)"),
    (paths, {"background": np.full((3, 3), np.nan)}, ValueError, "0 finite values"),
    (paths, {"background": [["a"]]}, TypeError, "background: given list that is not an array"),
    (paths, {"extent": (1, 0, 0, 1)}, ValueError, "extent: given (1, 0, 0, 1)"),
    (paths, {"extent": (0, 1)}, ValueError, "extent: given shape (2,), expected (4)"),
    (paths, {"paths": [1]}, TypeError, "paths: given list, expected a mapping"),
    (paths, {"paths": {}}, ValueError, "paths: given 0 lines, expected 1 to 6"),
    (paths, {"paths": {"SGD": [[(0, 0)]]}}, ValueError, "paths['SGD']: given 1 arrays, expected 2"),
    (paths, {"paths": {"SGD": [[0], [0]]}}, ValueError, "paths['SGD'][0]: given shape (1,)"),
    (paths, {"losses": {"Adam": [[1], [1]]}}, ValueError, "losses: given ['Adam'], expected"),
    (paths, {"losses": {"SGD": [[1], [1]]}}, ValueError, "losses['SGD'][0]: given shape (1,)"),
    (paths, {"levels": "log", "background": -np.eye(2)}, ValueError, "levels: given 'log'"),
    (paths, {"levels": [2, 1]}, ValueError, "levels: given [2, 1]"),
    (paths, {"levels": 0}, ValueError, "levels: given 0"),
    (paths, {"minimum": (1, 2, 3)}, ValueError, "minimum: given shape (1, 3), expected (any, 2)"),
    (paths, {"choice": ("rate", [1])}, ValueError, "paths['SGD']: given 2 arrays, expected 1"),
    (paths, {"start": 2}, ValueError, "start: given 2"),
    (paths, {"xlabel": None}, TypeError, "xlabel: given NoneType"),
    (walk, {"alphas": [0, 0, 1]}, ValueError, "alphas: given [0, 0, 1], expected"),
    (walk, {"alphas": [0, 1, np.nan]}, ValueError, "alphas: given"),
    (walk, {"curves": {"train": [1, 2]}}, ValueError, "curves['train']: given shape (2,)"),
    (walk, {"curves": {"train": [np.nan] * 3}}, ValueError, "curves: expected at least one finite"),
    (walk, {"curves": {"a": [-1, -1, 0]}, "log": True}, ValueError, "one finite positive value"),
    (walk, {"bands": {"validation": [1, 1, 1]}}, ValueError, "bands['validation']: expected"),
    (walk, {"bands": {"train": [1, -1, 1]}}, ValueError, "bands['train']: expected"),
    (walk, {"images": np.zeros((2, 4))}, ValueError, "images: given shape (2, 4), expected (M, h"),
    (walk, {"images": np.full((2, 4, 4), 255)}, ValueError, "images: given 255 to 255"),
    (
        walk,
        {"probabilities": np.zeros((3, 1, 2))},
        ValueError,
        "given shape (3, 1, 2), expected (3, 2",
    ),
    (walk, {"probabilities": np.full((3, 2, 2), 1.5)}, ValueError, "probabilities: given 1.5 to"),
    (walk, {"labels": [0, 2]}, ValueError, "labels: given [0, 2], expected whole numbers below 2"),
    (walk, {"classes": ["cat", 1]}, TypeError, "classes: given int, expected a text"),
    (walk, {"alt": " "}, ValueError, "alt: given an empty text"),
    (sights, {"alphas": [0, 1, 3]}, ValueError, "alphas: given steps of 1 to 2, expected equal"),
    (sights, {"betas": [0]}, ValueError, "betas: given [0], expected at least two finite numbers"),
    (sights, {"betas": [0, 1, 2]}, ValueError, "loss: given shape (3, 2), expected (3, 3)"),
    (sights, {"loss": -np.ones((3, 2))}, ValueError, "loss: given -1 to -1, expected no negative"),
    (sights, {"loss": np.zeros((3, 2))}, ValueError, "loss: given 0 to 0, expected no negative"),
    (sights, {"loss": np.full((3, 2), np.nan)}, ValueError, "loss: given no finite number"),
    (sights, {"accuracy": np.ones(3)}, ValueError, "accuracy: given shape (3,), expected (3, 2)"),
    (sights, {"accuracy": np.full((3, 2), 91)}, ValueError, "accuracy: given 91 to 91"),
    (sights, {"images": np.zeros(4)}, ValueError, "images: given shape (4,), expected (M, h"),
    (sights, {"probabilities": np.ones((3, 2, 2))}, ValueError, "expected (3, 2, 2, 2), not"),
    (sights, {"labels": [0, 2]}, ValueError, "labels: given [0, 2], expected whole numbers"),
    (sights, {"classes": ["a"] * 256}, ValueError, "classes: given 256, expected 255 at most"),
    (sights, {"pattern": np.eye(3)}, ValueError, "pattern: given shape (3, 3), expected (2, 3)"),
    (sights, {"pattern": np.ones((2, 3))}, ValueError, "pattern: expected LOW and HIGH cells"),
    (sights, {"start": 1}, ValueError, "start: given shape (), expected (2)"),
    (sights, {"ylabel": ""}, ValueError, "ylabel: given an empty text"),
    (drawing, {"pattern": np.eye(25)}, ValueError, "pattern: given shape (25, 25), expected two"),
    (drawing, {"pattern": [[1, 0]]}, ValueError, "pattern: given shape (1, 2), expected two"),
    (drawing, {"pattern": [1, 0]}, ValueError, "pattern: given shape (2,), expected two dim"),
    (drawing, {"pattern": [".?", "##"]}, ValueError, "pattern: expected rows of one length"),
    (drawing, {"pattern": np.ones((4, 4))}, ValueError, "pattern: expected LOW and HIGH cells"),
    (drawing, {"name": "a b"}, ValueError, "name: given 'a b', expected the name of a variable"),
    (drawing, {"name": "lambda"}, ValueError, "name: given 'lambda', expected the name of"),
    (drawing, {"name": 3}, TypeError, "name: given int, expected a text"),
]


@pytest.mark.parametrize("make, changes, error, message", BAD, ids=[case[3] for case in BAD])
def test_bad_input_is_named(make: Any, changes: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make(**changes)


def test_live_computes_again_when_a_slider_moves() -> None:
    seen: list[Any] = []
    box = widgets.live(
        lambda step_size, steps, rule: seen.append((step_size, steps, rule)),
        step_size=(0.0, 1.0, 0.1, 0.5),
        steps=(1, 10, 1, 2),
        rule=["SGD", "Adam"],
    )
    size, steps, rule = box.children[:3]
    assert [control.description for control in (size, steps, rule)] == [
        "step size",
        "steps",
        "rule",
    ]
    size.value, steps.value, rule.value = 0.7, 3, "Adam"
    assert seen[0] == (0.5, 2, "SGD") and seen[-1] == (0.7, 3, "Adam")


@pytest.mark.parametrize(
    "sliders, error, message",
    [
        ({}, ValueError, "sliders: given none"),
        ({"rate": (0, 1)}, TypeError, "rate: given (0, 1), expected (min, max, step, default)"),
        ({"rate": []}, TypeError, "rate: given [], expected"),
        ({"rate": (0, 1, 0.1, 2)}, ValueError, "rate: given default 2, expected 0 to 1"),
    ],
)
def test_live_names_a_bad_slider(sliders: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        widgets.live(print, **sliders)


def live_drawing(function: Any, pattern: Any = ("#.", "..")) -> Any:
    """The parts of a drawing: cells, the count, the buttons and the output."""
    grid, count, buttons, output = widgets.live_drawing(function, pattern).children
    clear, start = buttons.children
    assert [clear.description, start.description] == ["Clear", "Fit"]
    return grid.children, count, clear, start, output


def test_live_drawing_calls_the_function_with_what_is_drawn() -> None:
    seen: list[Any] = []
    cells, count, _, start, _ = live_drawing(seen.append, ["#..", "..#"])
    assert [cell.value for cell in cells] == [True, False, False, False, False, True]
    assert cells[5].tooltip == "row 1, column 2"
    assert count.value == "Coloured cells are LOW: 2 of 6."
    cells[0].value, cells[1].value = False, True
    assert [cell.button_style for cell in cells[:3]] == ["", "primary", ""]
    assert not seen  # only when it is asked for
    start.click()
    assert len(seen) == 1 and seen[0].dtype == bool
    np.testing.assert_array_equal(seen[0], [[0, 1, 0], [0, 0, 1]])
    seen[0][:] = False  # the function's own
    assert count.value == "Coloured cells are LOW: 2 of 6."


def test_live_drawing_shares_one_look() -> None:
    """576 cells with a layout and a style each would make a slow page."""
    cells = live_drawing(print, np.eye(24))[0]
    assert len({id(cell.layout) for cell in cells}) == len({id(cell.style) for cell in cells}) == 1


def test_live_drawing_says_what_went_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(pattern: Any) -> None:
        print("begun")
        raise ValueError("lr: expected a positive number, got 0")

    def printed() -> str:  # without what clears the output where there is no kernel
        return capsys.readouterr().out.replace("\x1b[2K\r", "")

    cells, count, clear, start, _ = live_drawing(fail)
    start.click()
    assert printed() == "begun\nValueError: lr: expected a positive number, got 0\n"
    clear.click()
    assert not any(cell.value for cell in cells)
    assert count.value == "Coloured cells are LOW: 0 of 4."
    start.click()
    expected = "ValueError: pattern: expected LOW and HIGH cells, got 4 that are HIGH\n"
    assert printed() == expected
    assert not (start.disabled or clear.disabled)


def test_live_drawing_shows_figures_when_the_function_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not before: each message from the page would show and close what is drawn so far."""
    shown: list[int] = []
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "inline")
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))

    def plot(pattern: Any) -> None:
        plt.figure()
        assert not plt.isinteractive() and not shown

    was = plt.isinteractive()
    with plt.ion():
        live_drawing(plot)[3].click()
        assert plt.isinteractive()
    plt.close("all")
    assert shown == [1] and plt.isinteractive() == was


def test_live_drawing_can_be_started_only_once_at_a_time() -> None:
    disabled: list[bool] = []

    def look(pattern: Any) -> None:
        disabled.extend([start.disabled, clear.disabled])
        raise KeyboardInterrupt

    _, _, clear, start, _ = live_drawing(look)
    with pytest.raises(KeyboardInterrupt):
        start.click()
    assert disabled == [True, True]
    assert not (start.disabled or clear.disabled)


@pytest.mark.parametrize(
    "function, pattern, error, message",
    [
        (3, np.eye(3), TypeError, "function: given int, expected a function"),
        (print, np.eye(25), ValueError, "pattern: given shape (25, 25), expected two dimensions"),
        (print, np.zeros((3, 3)), ValueError, "pattern: expected LOW and HIGH cells"),
    ],
)
def test_live_drawing_names_bad_input(
    function: Any, pattern: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        widgets.live_drawing(function, pattern)
