"""Sliders without a kernel: what the HTML holds. tests/browser moves them."""

import base64
import io
import json
import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from landscape_lib import widgets

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


MAKERS = {"frames": frames, "paths": paths, "walk": walk}


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


@pytest.mark.parametrize("kind", MAKERS)
def test_text_is_never_markup(kind: str) -> None:
    nasty = '</script><img src=x onerror="boom"> & "quotes"'
    widget = MAKERS[kind](alt=nasty, caption=nasty)
    assert "<img src=x" not in widget.html and "</script><img" not in widget.html
    assert "&lt;img src=x onerror=&quot;boom&quot;&gt; &amp;" in widget.html


def test_labels_are_never_markup() -> None:
    assert "<b>" not in frames(sliders=[("<b>", ["<b>", "</script>"])]).html
    assert "<b>" not in paths(xlabel="<b>", paths={"<b>": [[(0, 0)], [(0, 0)]]}, losses=None).html
    assert "<b>" not in walk(classes=["<b>", "</b>"], curves={"<b>": [1, 2, 3]}).html


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


def test_walk_makes_room_for_bands_and_only_for_finite_values() -> None:
    data = data_of(walk(bands={"train": [0.5, 0, np.nan]}))
    assert data["range"][0] == pytest.approx(2 - 0.075) and data["range"][1] == pytest.approx(3.575)
    assert data_of(walk(curves={"flat": [2, 2, 2]}))["range"] == [1.5, 2.5]
    assert data_of(walk(curves={"train": [0, 1, 10]}, log=True))["range"][0] > 0


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
