"""Drawing a pattern in a real browser, with mouse, finger and keyboard."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect
from widget_pages import OpenPage, fill

from landscape_lib import widgets
from landscape_lib.mpo import patterns

ROWS = [".##.", "#..#", ".##."]


def code(page: Page) -> str:
    return page.locator(".lw-code").text_content() or ""


def drawn(page: Page) -> list[str]:
    """What the code says, as rows of text; the grid must show the same."""
    rows = code(page).split("\n")[1:-1]
    selected = page.get_by_role("gridcell").evaluate_all(
        "all => all.map((cell) => cell.getAttribute('aria-selected') === 'true' ? '#' : '.')"
    )
    assert "".join(selected) == "".join(rows)
    return rows


def cell(page: Page, row: int, column: int) -> tuple[float, float]:
    """The middle of a cell."""
    box = page.get_by_role("gridcell", name=f"row {row}, column {column}:").bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name)


def test_the_code_makes_what_is_drawn(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, widgets.drawing(ROWS, name="picture")))
    assert code(page) == 'picture = ll.patterns.from_drawing("""\n.##.\n#..#\n.##.\n""")'
    assert drawn(page) == ROWS
    page.mouse.click(*cell(page, 0, 0))
    page.mouse.click(*cell(page, 2, 1))
    assert drawn(page) == ["###.", "#..#", "..#."]
    made: dict[str, object] = {}
    exec(code(page).replace("ll.patterns.", ""), {"from_drawing": patterns.from_drawing}, made)
    np.testing.assert_array_equal(made["picture"], [[1, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 0]])


def test_a_stroke_has_the_colour_it_begins_with_and_no_gaps(
    open_page: OpenPage, write: Path
) -> None:
    start = np.zeros((12, 12), dtype=int)
    start[0, 5] = 1
    page = open_page(fill(write, widgets.drawing(start)))
    page.mouse.move(*cell(page, 1, 1))
    page.mouse.down()
    page.mouse.move(*cell(page, 1, 10))  # one quick jump
    page.mouse.move(*cell(page, 8, 10))
    page.mouse.up()
    page.mouse.move(*cell(page, 11, 0))  # no button: nothing
    expected = np.array(start)
    expected[1, 1:11] = expected[1:9, 10] = 1
    np.testing.assert_array_equal(patterns.from_drawing(drawn(page)), expected)
    # From a LOW cell on, a stroke erases; it may leave the grid and come back.
    page.mouse.move(*cell(page, 0, 5))
    page.mouse.down()
    page.mouse.move(cell(page, 0, 5)[0], 0)
    page.mouse.move(*cell(page, 2, 5))
    page.mouse.up()
    expected[:3, 5] = 0
    np.testing.assert_array_equal(patterns.from_drawing(drawn(page)), expected)


def test_a_stroke_from_outside_draws_nothing(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, widgets.drawing(ROWS)))
    page.mouse.move(2, 2)
    page.mouse.down()
    page.mouse.move(*cell(page, 1, 1))
    page.mouse.up()
    page.mouse.click(*cell(page, 1, 1), button="right")
    assert drawn(page) == ROWS


def test_a_finger_draws_and_does_not_scroll(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, widgets.drawing(patterns.draw("heart", 24))), width=390)
    before = drawn(page)
    x, y = cell(page, 0, 0)
    touch = page.context.new_cdp_session(page)
    for kind, points in [
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x, "y": y + 40}]),
        ("touchMove", [{"x": x, "y": y + 80}]),
        ("touchEnd", []),
    ]:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    after = drawn(page)
    assert [row[1:] for row in after] == [row[1:] for row in before]
    assert "".join(row[0] for row in after).rstrip(".").count("#") > 4
    assert page.evaluate("scrollY") == 0


def test_the_keyboard_draws(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, widgets.drawing(ROWS)))
    page.keyboard.press("Tab")
    expect(page.get_by_role("gridcell", name="row 0, column 0: HIGH")).to_be_focused()
    for key in ["ArrowUp", "ArrowLeft", "Space", "ArrowDown", "ArrowRight", "Enter"]:
        page.keyboard.press(key)
    expect(page.get_by_role("gridcell", name="row 1, column 1: LOW")).to_be_focused()
    for key in ["End", "Space", "ArrowRight", "Home", "Space"]:
        page.keyboard.press(key)
    assert drawn(page) == ["###.", ".#..", ".##."]
    page.keyboard.press("Tab")  # one stop for the whole grid
    expect(button(page, "Clear")).to_be_focused()
    assert page.evaluate("scrollY") == 0


def test_one_class_is_said_in_words(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, widgets.drawing(ROWS)))
    note, live = page.locator(".lw-note"), page.locator(".lw-live")
    assert live.text_content() == "Dark cells are LOW: 6 of 12."
    expect(note).to_contain_text("Dark cells are LOW: 6 of 12. Draw with the mouse")
    button(page, "Invert").click()
    assert drawn(page) == ["#..#", ".##.", "#..#"]
    button(page, "Clear").click()
    assert drawn(page) == ["...."] * 3
    assert live.text_content() == "Draw something: all cells are HIGH."
    expect(note).to_contain_text("Draw something: all cells are HIGH.")
    button(page, "Invert").press("Enter")
    assert live.text_content() == "Leave some cells HIGH: all cells are LOW."


@pytest.mark.parametrize("allowed", [True, False])
def test_the_code_can_be_copied(open_page: OpenPage, write: Path, allowed: bool) -> None:
    page = open_page(fill(write, widgets.drawing(ROWS)))
    # The clipboard of a page from a folder depends on the browser: a stand-in shows both cases.
    page.evaluate(
        """(allowed) => {
            const writeText = async (text) => {
                if (!allowed) throw new DOMException("not allowed", "NotAllowedError");
                window.copied = text;
            };
            Object.defineProperty(navigator, "clipboard", { value: { writeText } });
        }""",
        allowed,
    )
    button(page, "Copy the code").click()
    if allowed:
        expect(page.get_by_role("status")).to_have_text("Copied.")
        assert page.evaluate("copied") == code(page)
    else:
        expect(page.get_by_role("status")).to_have_text("Selected: copy it with Ctrl+C or ⌘C.")
        assert page.evaluate("getSelection().toString()").strip() == code(page)
    page.mouse.click(*cell(page, 1, 1))
    expect(page.get_by_role("status")).to_be_empty()


def test_without_scripts_the_code_shows(open_page: OpenPage, write: Path) -> None:
    page = open_page(fill(write, widgets.drawing(ROWS)), java_script_enabled=False)
    expect(page.locator(".lw-code")).to_contain_text(".##.\n#..#")


def test_low_is_dark_and_high_is_light_in_every_theme(
    open_page: OpenPage, write: Path, look: dict[str, Any]
) -> None:
    theme = "dark" if look["dark"] else "light"
    page = open_page(fill(write, widgets.drawing(ROWS), theme=theme), **look)
    for at, colour in [("0, column 0: HIGH", "253, 231, 37"), ("0, column 1: LOW", "68, 1, 84")]:
        found = page.get_by_role("gridcell", name=f"row {at}")
        expect(found).to_have_css("background-color", f"rgb({colour})")  # the ends of viridis


@pytest.mark.parametrize("side", [2, 16, 24])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_cells_are_square_and_fit_the_page(
    open_page: OpenPage, write: Path, side: int, width: int
) -> None:
    page = open_page(fill(write, widgets.drawing(np.eye(side))), width=width)
    grid = page.get_by_role("grid").bounding_box()
    assert (
        grid and grid["width"] == grid["height"] and (grid["width"] - 2) % side == 0
    )  # the border
    assert grid["width"] >= 10 * side
    # Room to scroll the page with a finger.
    assert 16 <= grid["x"] and grid["x"] + grid["width"] <= width - 16
