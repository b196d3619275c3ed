"""Every page of the built book, opened from its folder in a browser without a network."""

import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from built_pages import DESKTOP, HTML, LARGEST, WIDEST, names, weight
from lint_pages import TO_DO
from playwright.sync_api import Locator, Page

OpenPage = Callable[..., Page]

PAGES = names()
WITH_WIDGETS = [
    name for name in PAGES if 'class="landscape-widget"' in (HTML / name).read_text("utf-8")
]


def test_the_book_is_built() -> None:
    if PAGES:
        assert WITH_WIDGETS
        return
    message = f"no built book in {HTML.parent.name}/{HTML.name}: make book"
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@pytest.mark.parametrize("name", PAGES)
def test_it_opens(open_page: OpenPage, name: str, look: dict[str, Any]) -> None:
    page = open_page(HTML / name, **look)
    # The first page sends the reader on to another, whose script then sets the theme.
    theme = "dark" if look["dark"] else "light"
    page.locator(f"html[data-theme={theme}] main").wait_for()
    page.wait_for_load_state("load")
    assert page.locator("main").inner_text().strip()

    assert page.evaluate("document.documentElement.scrollWidth") <= look["width"]
    # Wide things scroll in a frame of their own, not the page.
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("article :is(p, table, ul, figure, img, div)")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
            .filter((e) => {
                while ((e = e.parentElement) && e.localName !== "article")
                    if (getComputedStyle(e).overflowX !== "visible") return false;
                return true;
            })
            .map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert beyond == []

    unnamed = "article img:not([alt]), article img[alt='']"
    assert (
        page.locator(unnamed).evaluate_all("all => all.map((e) => e.outerHTML.slice(0, 99))") == []
    )

    # MathJax works through a page after it has loaded; then no formula is left as it was.
    page.wait_for_function(
        """() => [...document.querySelectorAll("article .math")]
            .every((e) => e.querySelector("mjx-container"))"""
    )
    assert page.locator("mjx-merror").count() == 0


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_on_a_laptop_and_no_page_is_heavy(open_page: OpenPage, name: str) -> None:
    page = open_page(HTML / name, width=DESKTOP)
    page.locator("html[data-theme] main").wait_for()
    if any(f"/{chapter}_" in name for chapter in TO_DO):
        pytest.skip("a page that is still to be put into the form")
    widest, column = page.evaluate(WIDEST)
    assert widest <= column
    assert weight(name) < LARGEST


def test_files_to_save_stand_beside_the_pages() -> None:
    """No page carries them, and every one is there."""
    link = re.compile(r'<a download="([^"]*)" href="([^"]*)"')
    found = [
        (name, (HTML / page).parent / unquote(address))
        for page in PAGES
        for name, address in link.findall((HTML / page).read_text("utf-8"))
    ]
    assert found or not PAGES
    assert [path for name, path in found if path.name != name or not path.is_file()] == []


def drawn(widget: Locator) -> tuple[str, bytes]:
    picture = widget.locator(".lw-picture")
    return picture.evaluate("e => e.outerHTML"), picture.screenshot(animations="disabled")


@pytest.mark.parametrize("name", WITH_WIDGETS)
def test_its_widgets_react(open_page: OpenPage, name: str, look: dict[str, Any]) -> None:
    page = open_page(HTML / name, **look)
    for widget in page.locator(".landscape-widget").all():
        assert widget.get_attribute("data-ready") == ""
        if widget.get_attribute("data-kind") == "drawing":
            before = drawn(widget)
            widget.get_by_role("gridcell").first.press("Space")
            after = drawn(widget)
            assert before[0] != after[0] and before[1] != after[1], "drawing: the same picture"
            continue
        sliders = widget.locator(".lw-slider input[type=range]").all()
        assert sliders
        for slider in sliders:
            label = slider.evaluate("e => [...e.labels].map((label) => label.innerText).join()")
            assert label.strip()
            last = slider.get_attribute("max")
            if last == "0":
                continue
            before = drawn(widget)
            slider.press("Home" if slider.input_value() == last else "End")
            assert slider.input_value() in ("0", last)
            after = drawn(widget)
            assert before[0] != after[0] and before[1] != after[1], f"{label}: the same picture"


A4 = 794  # CSS pixels


@pytest.mark.parametrize("name", PAGES)
def test_it_prints_on_a4_from_dark_mode_in_the_colours_of_light_mode(
    open_page: OpenPage, name: str
) -> None:
    page = open_page(HTML / name, width=A4, dark=True)
    page.locator("html[data-theme=dark] main").wait_for()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    cut = page.evaluate(
        """() => [...document.querySelectorAll("article :is(pre, table, img, svg, canvas)")]
            .filter((e) => e.offsetParent && !e.closest(".ll-sr, [hidden]"))
            .filter((e) => e.scrollWidth > e.clientWidth + 1
                && getComputedStyle(e).overflowX != "visible"
                || e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => e.tagName + " " + e.textContent.trim().slice(0, 60))"""
    )
    assert cut == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
