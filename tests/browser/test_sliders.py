"""The sliders of `widgets` in a real browser, moved by keyboard, finger and pointer."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, expect
from widget_pages import THEMES, OpenPage, contrasts, fill

from landscape_lib import widgets

COLOURS = ["#c03030", "#30c030", "#3030c0", "#c0c030", "#c030c0", "#30c0c0"]
SQUARES = [
    f'<svg width="100" height="60"><rect width="100" height="60" fill="{colour}"/></svg>'
    for colour in COLOURS
]
STEPS, RATES = 20, [0.01, 0.1, 1.5]
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"]


def one_slider() -> widgets.Widget:
    return widgets.frames(
        SQUARES[:3], sliders=[("gamma", [1, 2, 3])], alt=["red", "green", "blue"], play=True
    )


def two_sliders() -> widgets.Widget:
    return widgets.frames(
        [SQUARES[:3], SQUARES[3:]],
        sliders=[("gamma", [1, 2]), ("seed", ["a", "b", "c"])],
        alt=lambda gamma, seed: f"square {gamma}{seed}",
    )


def descent(rate: float, curvature: float) -> np.ndarray:
    points = [np.array([1.5, 1.0])]
    for _ in range(STEPS):
        points.append(points[-1] - rate * points[-1] * [1, curvature])
    return np.array(points)


def on_a_map() -> widgets.Widget:
    y, x = np.mgrid[-2:2:41j, -2:2:41j]
    runs = {
        "steep": [descent(rate, 3) for rate in RATES],
        "flat": [descent(rate, 1) for rate in RATES],
    }
    runs["flat"][0][STEPS // 2 :] = np.nan
    return widgets.paths(
        x**2 + 3 * y**2,
        runs,
        losses={name: [(run**2 @ [1, 3]) for run in runs[name]] for name in runs},
        extent=(-2, 2, -2, 2),
        xlabel="first weight",
        ylabel="second weight",
        choice=("step size", RATES),
        minimum=(0, 0),
        alt="A bowl and two paths into it.",
        caption="Two paths.",
    )


def along_a_line() -> widgets.Widget:
    alphas = np.linspace(-0.25, 1.25, 31)
    loss = 2.3 - 2 * np.exp(-4 * (alphas - 1) ** 2)
    chances = np.full((31, 2, 8), 0.02)
    chances[:, 0, 1] = 0.86  # always Trouser, which is right
    chances[:16, 1, 3], chances[16:, 1, 2] = 0.86, 0.86  # first Dress, which is wrong
    chances[30] = np.nan
    return widgets.walk(
        alphas,
        {"train loss": loss, "test loss": np.where(alphas > 1.22, np.nan, loss + 0.1)},
        bands={"train loss": loss / 20},
        images=np.random.default_rng(0).random((2, 8, 8)),
        probabilities=chances,
        labels=[1, 2],
        classes=CLASSES,
        marks={"untrained": 0, "trained": 1},
        alt="Loss from the untrained to the trained network.",
    )


def over_a_plane() -> widgets.Widget:
    """4 x 3 cells: only the middle row, at beta = 0, is LOW from alpha = -1 on."""
    low = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    loss = np.where(low.T, 0.25, 4.0) + np.arange(12).reshape(4, 3) / 1000
    loss[0, 0] = np.inf
    chances = np.full((4, 3, 2, 8), 0.02)
    chances[..., 0, 1] = 0.86  # always Trouser, which is right
    chances[~low.T, 1, 3], chances[low.T, 1, 2] = 0.855, 0.862  # Dress, wrong, or Pullover
    chances[3, 2] = np.nan
    return widgets.sights(
        np.arange(4) - 2,
        np.arange(3) - 1,
        loss,
        accuracy=np.where(low.T, 0.9125, 0.1),
        images=np.random.default_rng(0).random((2, 8, 8)),
        probabilities=chances,
        labels=[1, 2],
        classes=CLASSES,
        pattern=low,
        alt="A bar of low loss.",
        caption="A fitted plane.",
    )


def a_surface() -> widgets.Widget:
    """A bowl whose lowest point is in its middle, with a gap in a corner and a path into it."""
    side = np.linspace(-1, 1, 21)
    bowl = 1 + side[:, None] ** 2 + 3 * side**2
    bowl[:2, :2] = np.nan
    return widgets.surface(
        bowl, side, side, path=descent(0.1, 3) / 2, alt="A bowl.", caption="It turns."
    )


def a_drawing() -> widgets.Widget:
    return widgets.drawing([".##.", "#..#", ".##."])


ALL = {
    "one": one_slider,
    "two": two_sliders,
    "map": on_a_map,
    "line": along_a_line,
    "plane": over_a_plane,
    "surface": a_surface,
    "drawing": a_drawing,
}


def disturb(widget: Locator) -> None:
    """Move the last slider, or draw where there is none."""
    if widget.get_by_role("slider").count():
        slider = widget.get_by_role("slider").last
        slider.press("Home" if slider.input_value() != "0" else "End")
    else:
        widget.get_by_role("gridcell").first.press("Space")


def shown(widget: Locator) -> str | None:
    return widget.locator(".lw-shown").get_attribute("aria-label")


def sentence(widget: Locator) -> str:
    return widget.locator(".lw-live").text_content() or ""


def middle(thing: Locator) -> tuple[float, float]:
    box = thing.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def table(widget: Locator) -> dict[str, list[str]]:
    rows = [row.locator("th, td").all_inner_texts() for row in widget.locator("tbody tr").all()]
    return {name.strip(): numbers for name, *numbers in rows}


def test_the_keyboard_chooses_the_picture(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, one_slider()))
    widget = page.locator(".landscape-widget")
    before = widget.locator(".lw-picture").screenshot()
    assert shown(widget) == "red"
    page.keyboard.press("Tab")  # the button
    page.keyboard.press("Tab")
    expect(page.get_by_role("slider", name="gamma")).to_be_focused()
    page.keyboard.press("ArrowRight")
    assert shown(widget) == "green"
    assert widget.locator(".lw-picture").screenshot() != before
    assert widget.locator("output").inner_text() == "2"
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "2"
    assert sentence(widget) == "gamma 2. green"
    page.keyboard.press("End")
    assert shown(widget) == "blue"
    page.keyboard.press("Home")
    assert shown(widget) == "red"
    assert widget.locator(".lw-picture").screenshot() == before


def test_two_sliders_choose_row_and_column(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, two_sliders()))
    widget = page.locator(".landscape-widget")
    seen = []
    for _ in range(2):
        page.get_by_label("seed").press("Home")
        for _ in range(3):
            seen.append(shown(widget))
            page.get_by_label("seed").press("ArrowRight")
        page.get_by_label("gamma").press("ArrowRight")
    assert seen == [f"square {gamma}{seed}" for gamma in (1, 2) for seed in "abc"]


def test_paths_are_drawn_up_to_the_chosen_step(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, on_a_map()))
    widget = page.locator(".landscape-widget")
    line = widget.locator("svg svg .lw-line").first
    time, size = page.get_by_label("step", exact=True), page.get_by_label("step size")
    assert (time.input_value(), size.input_value()) == (str(STEPS), "0")
    pictures = [widget.locator(".lw-picture").screenshot()]
    assert str(line.get_attribute("d")).count("L") == STEPS
    time.press("ArrowLeft")
    assert str(line.get_attribute("d")).count("L") == STEPS - 1
    pictures.append(widget.locator(".lw-picture").screenshot())
    assert widget.locator("thead th").last.inner_text() == f"position at step {STEPS - 1}"
    size.press("ArrowRight")
    pictures.append(widget.locator(".lw-picture").screenshot())
    assert len(set(pictures)) == 3
    x, y = descent(RATES[1], 3)[STEPS - 1]
    loss, where = table(widget)["steep"]
    assert float(loss) == pytest.approx(x**2 + 3 * y**2, rel=1e-2)
    assert where.startswith(f"({x:.3f}, ")
    assert f"steep: loss {loss}, {where}" in sentence(widget)


def test_points_lie_where_the_axes_say(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, on_a_map()))
    page.get_by_label("step", exact=True).press("Home")
    head = page.locator(".lw-head").nth(1).bounding_box()  # the first is the star
    area = page.locator("svg svg image").bounding_box()
    assert head and area
    for centre, low, high, value in [
        (head["x"] + head["width"] / 2, area["x"], area["x"] + area["width"], 1.5),
        (head["y"] + head["height"] / 2, area["y"] + area["height"], area["y"], 1.0),
    ]:
        assert centre == pytest.approx(low + (value + 2) / 4 * (high - low), abs=1)


def test_a_path_that_leaves_the_map_is_reported(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, on_a_map()))
    widget = page.locator(".landscape-widget")
    assert table(widget)["flat"] == ["not a number", "left the map at step 10, not finite"]
    page.get_by_label("step size").press("End")  # |1 - 1.5 * 3| > 1: divergence
    assert table(widget)["steep"][1] == "left the map at step 1"
    assert "left the map at step 1" in sentence(widget)
    # The head waits at the edge.
    area = page.locator("svg svg image").bounding_box()
    head = page.locator(".lw-head").nth(1).bounding_box()
    assert area and head
    for start, size in [("x", "width"), ("y", "height")]:
        assert area[start] <= head[start] + 1
        assert head[start] + head[size] <= area[start] + area[size] + 1


def test_a_path_can_be_hidden(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, on_a_map()))
    before = page.locator(".lw-picture").screenshot()
    page.get_by_role("checkbox", name="steep").press("Space")
    hidden = page.locator(".lw-picture").screenshot()
    assert hidden != before
    assert "steep" not in sentence(page.locator(".landscape-widget"))
    page.get_by_role("checkbox", name="steep").press("Space")
    assert page.locator(".lw-picture").screenshot() == before


def test_walking_moves_the_cursor_and_the_predictions(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, along_a_line()))
    widget, slider = page.locator(".landscape-widget"), page.get_by_role("slider", name="α")
    verdicts = widget.locator(".lw-verdict")
    assert slider.get_attribute("aria-valuetext") == "0.00"
    assert verdicts.all_inner_texts() == ["✓\nTrouser (right)", "✗\nDress (wrong)"]
    before = widget.locator(".lw-picture").screenshot()
    cursor = widget.locator(".lw-cursor").get_attribute("d")
    for _ in range(20):
        slider.press("ArrowRight")
    assert widget.locator(".lw-picture").screenshot() != before
    assert widget.locator(".lw-cursor").get_attribute("d") != cursor
    assert table(widget) == {"train loss": ["0.300 ± 0.015"], "test loss": ["0.400"]}
    assert verdicts.all_inner_texts()[1] == "✓\nPullover (right)"
    assert "α 1.00. train loss 0.300 ± 0.015. test loss 0.400." in sentence(widget)
    bars = widget.locator(".lw-card").nth(1).locator(".lw-bar")
    assert bars.nth(2).inner_text().split() == ["Pullover", "86", "%"]
    slider.press("End")
    assert table(widget)["test loss"] == ["not a number"]
    assert verdicts.all_inner_texts() == ["–\nno prediction"] * 2


def test_a_click_in_the_plot_walks_there(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, along_a_line()))
    plot = page.locator(".lw-drag").bounding_box()
    assert plot
    page.locator(".lw-drag").click(position={"x": plot["width"] * 1.25 / 1.5, "y": 20})
    assert page.locator("output").inner_text() == "1.00"


def test_the_sliders_of_a_plane_move_marker_and_predictions(
    open_page: OpenPage, write: Path
) -> None:
    page = open_page(fill(write, over_a_plane()))
    widget = page.locator(".landscape-widget")
    alpha, beta = (page.get_by_role("slider", name=name) for name in "αβ")
    verdicts, bars = widget.locator(".lw-verdict"), widget.locator(".lw-bar")
    assert table(widget) == {"(0, 0)": ["0.2570", "0.9125", "LOW"]}
    assert verdicts.all_inner_texts() == ["✓\nTrouser (right)", "✓\nPullover (right)"]
    assert bars.nth(1).inner_text().split() == ["probability", "86", "%"]
    start = middle(page.locator("circle").first)

    beta.press("ArrowRight")  # downwards, as the rows of a pattern
    below = middle(page.locator("circle").first)
    assert below[0] == pytest.approx(start[0], abs=0.1) and below[1] > start[1] + 20
    assert table(widget) == {"(0, 1)": ["4.008", "0.1000", "HIGH"]}
    assert verdicts.all_inner_texts() == ["✓\nTrouser (right)", "✗\nDress (wrong)"]
    assert bars.nth(1).inner_text().split() == ["probability", "86", "%"]
    assert sentence(widget) == (
        "α 0, β 1, HIGH. loss 4.008, accuracy 0.1000. image 1: Trouser: predicted Trouser (right), "
        "86 %. image 2: Pullover: predicted Dress (wrong), 86 %."
    )
    alpha.press("ArrowRight")
    assert middle(page.locator("circle").first)[0] > below[0] + 20
    assert verdicts.all_inner_texts() == ["–\nno prediction"] * 2
    assert bars.nth(0).inner_text().split() == ["probability", "–"]
    alpha.press("Home")
    beta.press("Home")
    assert table(widget) == {"(−2, −1)": ["∞", "0.1000", "HIGH"]}


def test_a_press_on_the_map_goes_to_the_cell(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, over_a_plane()))
    widget, pad = page.locator(".landscape-widget"), page.locator(".lw-drag").bounding_box()
    assert pad
    wide, high = pad["width"] / 4, pad["height"] / 3
    assert wide == pytest.approx(high, rel=0.01)
    for i, j in [(0, 2), (3, 1), (2, 0)]:
        centre = (pad["x"] + (i + 0.5) * wide, pad["y"] + (j + 0.5) * high)
        page.mouse.click(centre[0] + 0.4 * wide, centre[1] - 0.4 * high)
        assert widget.locator("output").all_inner_texts() == [
            str(i - 2).replace("-", "−"),
            str(j - 1).replace("-", "−"),
        ]
        assert middle(page.locator("circle").first) == pytest.approx(centre, abs=0.6)
    # A drag goes along, and waits at the edge when the pointer leaves the map.
    page.mouse.down()
    page.mouse.move(pad["x"] + 0.5 * wide, pad["y"] + 1.5 * high)
    assert widget.locator("output").all_inner_texts() == ["−2", "0"]
    page.mouse.move(pad["x"] + 2.5 * wide, pad["y"] + 9 * high)
    assert widget.locator("output").all_inner_texts() == ["0", "1"]
    page.mouse.up()
    page.mouse.move(pad["x"], pad["y"])
    assert widget.locator("output").all_inner_texts() == ["0", "1"]


def test_the_map_of_a_plane_lies_as_its_pattern(open_page: OpenPage, write: Path) -> None:
    """Dark where the loss is low; hatched, that is grey, where it is not finite."""
    page = open_page(fill(write, over_a_plane()))
    page.get_by_role("slider", name="α").press("End")
    shot = page.locator("image").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    high, wide = (side // size for side, size in zip(pixels.shape[:2], (3, 4), strict=True))
    # Away from the middle of a cell, where the marker may be.
    colours = pixels[high // 5 :: high, wide // 5 :: wide][:3, :4]
    dark = colours.sum(axis=2) < 250
    assert dark.tolist() == [[False] * 4, [False, True, True, True], [False] * 4]
    grey = np.ptp(colours, axis=2) < 12
    assert grey.tolist() == [[True, False, False, False], [False] * 4, [False] * 4]


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_a_film_starts_and_stops_when_asked(open_page: OpenPage, write: Path, motion: str) -> None:
    page = open_page(fill(write, ""), reduced_motion=motion)
    page.clock.install()
    page.goto(fill(write, on_a_map()).as_uri())
    time, button = page.get_by_label("step", exact=True), page.get_by_role("button")
    page.clock.run_for(60_000)
    assert time.input_value() == str(STEPS)  # never by itself
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true" and time.input_value() == "0"
    page.clock.run_for(3_000)
    assert 0 < int(time.input_value()) < STEPS
    button.press("Enter")
    there = time.input_value()
    page.clock.run_for(60_000)
    assert time.input_value() == there
    button.press("Enter")
    page.clock.run_for(60_000)
    assert time.input_value() == str(STEPS)
    assert button.get_attribute("aria-pressed") == "false"
    assert f"step {STEPS}." in sentence(page.locator(".landscape-widget"))


def test_widgets_do_not_touch_one_another(open_page: OpenPage, write: Path) -> None:
    """The same one twice, and one of each kind, on one page."""
    every = [*(make() for make in ALL.values()), one_slider(), along_a_line()]
    page = open_page(fill(write, *every))
    each = page.locator(".landscape-widget").all()
    assert len(each) == len(ALL) + 2
    for moved in each:
        states = [one.evaluate("one => one.outerHTML") for one in each]
        disturb(moved)
        after = [one.evaluate("one => one.outerHTML") for one in each]
        changed = [a != b for a, b in zip(states, after, strict=True)]
        assert changed == [one is moved for one in each]


def test_nothing_leaks_into_the_page(open_page: OpenPage, write: Path) -> None:
    names = "() => Object.getOwnPropertyNames(window).sort()"
    empty = open_page(fill(write, "")).evaluate(names)
    assert open_page(fill(write, *(make() for make in ALL.values()))).evaluate(names) == empty


def test_it_starts_where_a_notebook_inserts_it(open_page: OpenPage, write: Path) -> None:
    """JupyterLab sets innerHTML and then replaces each script by a copy of itself."""
    page = open_page(fill(write, '<div id="output"></div>'))
    for make in (one_slider, on_a_map, a_drawing, over_a_plane, one_slider):
        page.evaluate(
            """html => {
                const host = document.createElement("div");
                host.innerHTML = html;
                document.getElementById("output").append(host);
                for (const old of host.querySelectorAll("script")) {
                    const copy = document.createElement("script");
                    if (old.type) copy.type = old.type;
                    copy.textContent = old.textContent;
                    old.replaceWith(copy);
                }
            }""",
            make().html,
        )
    for widget in page.locator(".landscape-widget").all():
        assert widget.get_attribute("data-ready") == ""
        before = widget.locator(".lw-picture").screenshot()
        disturb(widget)
        assert widget.locator(".lw-picture").screenshot() != before


def test_a_folded_widget_is_drawn_when_it_opens(open_page: OpenPage, write: Path) -> None:
    folded = f"<details><summary>more</summary>{along_a_line().html}</details>"
    page = open_page(fill(write, folded))
    page.get_by_text("more").click()
    expect(page.locator(".lw-head").first).to_be_visible()
    expect(page.locator(".lw-picture > svg")).to_have_count(1)


def test_the_drawing_follows_the_width(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, on_a_map()))
    page.set_viewport_size({"width": 420, "height": 800})
    holder = page.locator(".lw-picture")
    expect(holder.locator("> svg")).to_have_attribute("width", re.compile(r"^40\d$"))
    assert (
        page.locator(".lw-picture text").first.evaluate(
            "text => parseFloat(getComputedStyle(text).fontSize)"
        )
        >= 12
    )


def test_without_scripts_the_first_picture_shows(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, one_slider()), java_script_enabled=False)
    expect(page.get_by_role("img", name="red")).to_be_visible()


def test_everything_has_a_name(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, *(make() for make in ALL.values())))
    for name in ["gamma", "seed", "step size", "step", "α", "β"]:
        assert page.get_by_role("slider", name=name, exact=True).count() >= 1
    for name in ["red", "square 1a", "A bowl and two paths", "Loss from the", "image 1: Trouser"]:
        expect(page.get_by_role("img", name=name).first).to_be_visible()
    assert page.get_by_role("button", name="play step").count() == 1
    for live in page.locator(".landscape-widget > [aria-live=polite]").all():
        assert live.text_content()


@pytest.mark.parametrize("font", ["sans-serif", "monospace; letter-spacing: 0.04em"])
@pytest.mark.parametrize("width", [320, 360, 390])
def test_a_phone_needs_no_sideways_scrolling(
    open_page: OpenPage, write: Path, width: int, font: str
) -> None:
    """In any font: the second is wider than those of readers."""
    page = open_page(fill(write, *(make() for make in ALL.values())), width=width)
    page.add_style_tag(content=f"body {{font-family: {font}}}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        """() => [...document.querySelectorAll(".landscape-widget *")]
            .filter((e) => !e.closest("svg svg"))
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)
            .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    for control in page.locator("input[type=range], button, .lw-table label").all():
        box = control.bounding_box()
        assert box and box["height"] >= 44  # room for a finger
    wrapped = page.locator(".lw-bar > :last-child").evaluate_all(
        """all => all.filter((e) => {
            const one = e.clientHeight;
            e.textContent = "100 %";
            return e.clientHeight > one || e.scrollWidth > e.clientWidth;
        }).length"""
    )
    assert wrapped == 0


@pytest.mark.parametrize("theme", THEMES)
def test_text_is_legible(open_page: OpenPage, write: Path, theme: str) -> None:
    """Contrast of at least 4.5 : 1 for text, 3 : 1 for lines and controls (WCAG AA)."""
    page = open_page(fill(write, *(make() for make in ALL.values()), theme=theme))
    words = ".landscape-widget :is(text:not(.lw-lost), span, th, td, output, p, div, button, pre)"
    texts = contrasts(page, words, own_text=True)
    assert len(texts) > 100
    assert {text for text, contrast in texts if contrast < 4.5} == set()
    lines = contrasts(page, "[data-kind=walk] .lw-line", own_text=False)
    assert len(lines) == 4 and min(contrast for _, contrast in lines) >= 3


def test_it_opens_in_every_look(open_page: OpenPage, write: Path, look: dict[str, Any]) -> None:
    theme = "dark" if look["dark"] else "light"
    page = open_page(fill(write, *(make() for make in ALL.values()), theme=theme), **look)
    expect(page.locator(".landscape-widget[data-ready]")).to_have_count(len(ALL))
    schemes = page.locator(".landscape-widget").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).colorScheme)"
    )
    assert set(schemes) == {theme}


def test_colours_follow_a_switch_of_the_page(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, along_a_line()))
    line = page.locator(".lw-table .lw-line").first
    before = line.evaluate("line => getComputedStyle(line).stroke")
    page.evaluate("document.documentElement.style.cssText = 'color:#eee;background:#111'")
    expect(page.locator(".landscape-widget")).to_have_css("color-scheme", "dark")
    assert line.evaluate("line => getComputedStyle(line).stroke") != before
