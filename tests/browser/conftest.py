"""A real browser with the network cut off. One Chromium serves the whole test session."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from built_pages import DESKTOP, PHONE, start
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

# The longest wait, in milliseconds: not how fast a page is, only the end of what hangs. Each test
# that fails may take as long, so not the half hour that a chapter gets.
HANG_MS = 300_000
expect.set_options(timeout=HANG_MS)
OpenPage = Callable[..., Page]


@pytest.fixture(
    params=[(DESKTOP, False), (DESKTOP, True), (PHONE, False), (PHONE, True)],
    ids=["desktop light", "desktop dark", "phone light", "phone dark"],
)
def look(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One of the looks a page can have, for `open_page`."""
    width, dark = request.param
    return {"width": width, "dark": dark}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        message = "Chromium is not installed: no browser to open the pages with"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        running = start(playwright, timeout=HANG_MS)
        yield running
        running.close()


# What the book's theme does in any page opened from a folder, to no harm of the reader: it preloads
# icon fonts, which browsers refuse to pages without a server and warn of, and draws its icons by a
# script.
FROM_THE_THEME = re.compile(
    r"Access to font at 'file:|Failed to load resource: .*\.woff2\b"
    r"|^A preload for '.*\.woff2' is found|\.woff2 was preloaded using link preload but not used"
)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open files as a reader without a network does: any error or request fails the test."""
    problems: list[str] = []
    contexts = []

    def route(route: Route) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            problems.append(f"request: {route.request.url}")
            route.abort()

    def hear(text: str) -> None:
        if not FROM_THE_THEME.search(text):
            problems.append(text)

    def hear_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            hear(f"{message.text} ({message.location['url']})")

    def open_one(path: Path, *, width: int = DESKTOP, dark: bool = False, **settings: Any) -> Page:
        phone = width <= 480
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            is_mobile=phone,
            has_touch=phone,
            offline=True,
            **settings,
        )
        contexts.append(context)
        context.set_default_timeout(HANG_MS)
        context.route("**/*", route)
        page = context.new_page()
        page.on("console", hear_console)
        page.on("pageerror", lambda error: hear(str(error)))
        page.goto(path.resolve().as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def write(tmp_path: Path) -> Path:
    """Where a test writes the page that it opens."""
    return tmp_path / "page.html"
