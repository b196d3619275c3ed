"""What the built pages weigh and measure, a line for each: `make pages`.

Widths are those of the widest visible code or output, and of its column. A phone scrolls wide code
in its frame; at 1280 pixels nothing may be wider than its column, which a test of the browser holds
pages to.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from playwright.sync_api import Browser, Page, sync_playwright

HTML = Path(__file__).parents[1] / "_build" / "html"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PHONE, DESKTOP = 390, 1280
LARGEST = 1_000_000  # bytes of a page with its figures

FIGURES = "article :is(.cell_output img, figure img, .landscape-widget)"
# When the first figure could be seen, in milliseconds after the page was asked for.
WATCH = f"""addEventListener("DOMContentLoaded", () => {{
    const look = () => {{
        const first = document.querySelector("{FIGURES}");
        const there = first && (first.localName !== "img" || first.complete);
        if (there) window.firstFigure = performance.now(); else requestAnimationFrame(look);
    }};
    if (document.querySelector("{FIGURES}")) look();
}})"""
# How wide the content is, and how wide it may be, of the visible code or output most too wide.
WIDEST = """() => [...document.querySelectorAll("article :is(pre, .ll-table)")]
    .filter((e) => e.checkVisibility())
    .map((e) => [e.scrollWidth, e.clientWidth])
    .reduce((a, b) => (b[0] - b[1] - a[0] + a[1] || b[0] - a[0]) > 0 ? b : a, [0, 0])"""


def names() -> list[str]:
    """Return the pages of the built book."""
    pages = [path.relative_to(HTML) for path in HTML.rglob("*.html")]
    return sorted(p.as_posix() for p in pages if p.parts[0] not in ("_static", "_sources"))


def weight(name: str) -> int:
    """Return the bytes of a page and of the pictures in it."""
    path = HTML / name
    text = path.read_text("utf-8")
    pictures = set(re.findall(r'<img\b[^>]*\bsrc="(?!data:)([^"?#]+)', text))
    return len(text.encode()) + sum((path.parent / unquote(p)).stat().st_size for p in pictures)


def start(playwright: Any, **options: Any) -> Browser:
    """Start Chromium, which must be installed."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return playwright.chromium.launch(executable_path=found, args=FLAGS, **options)


def opened(browser: Browser, name: str, width: int) -> Page:
    """Open a page as a reader without a network does."""
    size = {"width": width, "height": 800}
    page = browser.new_page(viewport=size, is_mobile=width == PHONE, offline=True)
    page.add_init_script(WATCH)
    page.goto((HTML / name).as_uri())
    page.locator("html[data-theme] main").wait_for()
    return page


def main() -> None:
    heads = ("kB", "wide at 390", "wide at 1280", "first figure", "above it")
    print(f"{'page':<42}" + "".join(f"{head:>14}" for head in heads))
    with sync_playwright() as playwright:
        browser = start(playwright)
        for name in names():
            cells = []
            for width in (PHONE, DESKTOP):
                page = opened(browser, name, width)
                widest, column = page.evaluate(WIDEST)
                cells.append(f"{widest}/{column}" if widest else "-")
                if width == PHONE:
                    first = page.locator(FIGURES).first
                    above = first.bounding_box()["y"] if first.count() else None
                if width == DESKTOP:
                    after = page.evaluate("window.firstFigure ?? null")
                page.close()
            cells += [f"{after:.0f} ms" if after else "-", f"{above:.0f} px" if above else "-"]
            row = [f"{weight(name) / 1000:.0f}", *cells]
            print(f"{name:<42}" + "".join(f"{cell:>14}" for cell in row))
        browser.close()


if __name__ == "__main__":
    main()
