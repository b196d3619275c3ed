"""A surface in a real browser, turned by keyboard, pointer and finger."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from widget_pages import OpenPage, fill

from landscape_lib import widgets

SIDE = np.linspace(-1, 1, 21)
BOWL = 1 + SIDE[:, None] ** 2 + 3 * SIDE**2
LOWEST = "Lowest loss 1 at α 0, β 0; highest loss 5 at α −1, β −1."


def bowl(z: np.ndarray = BOWL, **changes: Any) -> widgets.Widget:
    return widgets.surface(z, SIDE, SIDE, alt="A bowl.", **changes)


def pixels(page: Page) -> np.ndarray:
    shot = page.locator(".lw-turn canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def values(page: Page) -> list[str]:
    return [slider.input_value() for slider in page.get_by_role("slider").all()]


def test_both_sliders_turn_it_by_keyboard(
    open_page: OpenPage, write: Path, look: dict[str, Any]
) -> None:
    theme = "dark" if look["dark"] else "light"
    page = open_page(fill(write, bowl(), theme=theme), **look)
    before = pixels(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("slider", name="azimuth")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("output").first).to_have_text("−28°")
    turned = pixels(page)
    assert (before != turned).any()
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    expect(page.locator("output").last).to_have_text("90°")
    assert (turned != pixels(page)).any()
    expect(page.locator(".lw-live")).to_have_text(f"azimuth −28°, elevation 90°. {LOWEST}")
    assert page.evaluate("document.documentElement.scrollWidth") <= look["width"]


def test_words_are_legible_and_inside_whatever_the_view(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, bowl(1e4 * BOWL)), width=390)
    for azimuth in range(0, 181, 15):
        for elevation in (0, 25, 80):
            for slider, value in zip(
                page.get_by_role("slider").all(), (azimuth, elevation), strict=True
            ):
                slider.fill(str(value))
            boxes = page.locator(".lw-picture text").evaluate_all(
                """all => all.map((e) => [parseFloat(getComputedStyle(e).fontSize),
                    e.getBoundingClientRect().left, e.getBoundingClientRect().right])"""
            )
            assert len(boxes) > 8
            for size, left, right in boxes:
                assert size >= 9 and left >= 0 and right <= 390, (azimuth, elevation)


def test_dragging_turns_and_tips_it(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, bowl()))
    box = page.locator(".lw-turn canvas").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - box["width"] / 4, y + box["height"] / 8)
    page.mouse.up()
    assert values(page) == ["120", "35"]  # a quarter of 180 steps, an eighth of 80
    page.mouse.move(x, y)  # no button: nothing
    assert values(page) == ["120", "35"]
    page.mouse.down()
    page.mouse.move(x - box["width"] / 2, y + 2 * box["height"])
    page.mouse.up()
    assert values(page) == ["30", "80"]  # round and round, but never upside down


def test_the_pointer_tells_the_value_of_the_point_below_it(
    open_page: OpenPage, write: Path
) -> None:
    page = open_page(fill(write, bowl(start=(0, 90))))
    readout = page.locator(".lw-readout")
    expect(readout).to_have_text(LOWEST)
    box = page.locator(".lw-turn canvas").bounding_box()
    assert box
    x, y, side = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, 270
    page.mouse.move(x, y)
    expect(readout).to_have_text("α 0, β 0: loss 1.00")
    page.mouse.move(x + 0.25 * side, y - 0.5 * side)  # from above: α to the right, β upwards
    expect(readout).to_have_text("α 0.500, β 1.00: loss 4.25")
    page.mouse.move(5, 5)
    expect(readout).to_have_text(LOWEST)


@pytest.mark.parametrize("dark", [False, True])
def test_gaps_show_the_page_and_the_map_is_the_right_way_round(
    open_page: OpenPage, write: Path, dark: bool
) -> None:
    grid = np.array(BOWL)
    grid[SIDE > 0.45, :] = np.nan
    page = open_page(
        fill(write, bowl(grid, start=(0, 90)), theme="dark" if dark else "light"), dark=dark
    )
    seen = pixels(page)
    middle, quarter = seen.shape[1] // 2, 65
    rows, ground = seen.shape[0] // 2 + 20, seen[3, 3]
    assert (
        np.abs(seen[rows, middle + quarter + 20] - ground).max() < 130
    )  # the floor's lines at most
    assert (seen[rows, middle - quarter] != ground).any()
    assert "Gaps: 126 of 441" in page.locator(".lw-note").last.inner_text()


def test_a_hill_hides_the_path_behind_it(open_page: OpenPage, write: Path) -> None:
    hill = np.exp(-8 * (SIDE[:, None] ** 2 + SIDE**2))
    path = [(-0.8, 0.7), (0.8, 0.7)]  # far side, as seen from azimuth 0
    page = open_page(fill(write, bowl(hill, path=path, start=(0, 20))))

    def orange() -> int:
        red, green, blue = np.moveaxis(pixels(page), -1, 0)
        return int(((red > 190) & (green < 120) & (blue < 60)).sum())

    behind = orange()
    page.get_by_role("slider").first.press("Home")  # from the other side
    assert 0 < behind < 0.9 * orange()


def test_without_scripts_there_is_a_picture_from_above(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, bowl()), java_script_enabled=False)
    image = page.locator("img.lw-still")
    assert image.evaluate("e => e.naturalWidth") == 21
    expect(page.locator(".lw-picture")).to_contain_text("α from −1 to 1 to the right")
    expect(page.locator(".lw-readout")).to_have_text(LOWEST)


def test_a_kept_widget_shows_nothing_but_its_own_canvas(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, bowl(), bowl(), theme="light"))  # the same one twice
    expect(page.locator("canvas")).to_have_count(2)
    expect(page.locator("img")).to_have_count(0)


def test_the_floor_follows_a_page_that_turns_dark(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, bowl(start=(0, 20))))
    image = "document.querySelector('canvas').toDataURL()"
    before = page.evaluate(image)
    page.evaluate("document.documentElement.setAttribute('style', 'color: #ced6dd')")
    page.wait_for_function(f"before => {image} !== before", arg=before)
