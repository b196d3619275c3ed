"""Pages with widgets for tests/browser, and how legible they are."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

from landscape_lib import widgets

OpenPage = Callable[..., Page]

# Pages that widgets find themselves in; the last says nothing about its colour scheme.
THEMES = {
    "light": "html{color-scheme:light;background:#fff;color:#222}",
    "dark": "html{color-scheme:dark;background:#121212;color:#ced6dd}",
    "dark, unsaid": "html{background:#383838;color:#e8eaed}",
}


def fill(path: Path, *content: widgets.Widget | str, theme: str = "light") -> Path:
    body = "<hr>".join(c if isinstance(c, str) else c.html for c in content)
    path.write_text(
        '<!doctype html><html lang="en"><head><title>Page</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{THEMES[theme]} body{{font-family:sans-serif}}</style></head>"
        f"<body>{body}</body></html>",
        encoding="ascii",
    )
    return path


def contrasts(page: Page, selector: str, own_text: bool) -> list[tuple[str, float]]:
    return page.evaluate(
        """([selector, ownText]) => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const over = (...colours) => {
                canvas.clearRect(0, 0, 1, 1);
                for (const colour of colours) {
                    canvas.fillStyle = colour;
                    canvas.fillRect(0, 0, 1, 1);
                }
                const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) =>
                    v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
                return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
            };
            const page = getComputedStyle(document.documentElement).backgroundColor;
            const speaks = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
            return [...document.querySelectorAll(selector)]
                .filter((e) => !ownText || speaks(e))
                .map((e) => {
                    const style = getComputedStyle(e), inSvg = e.namespaceURI.endsWith("svg");
                    const ink = !ownText ? style.stroke : inSvg ? style.fill : style.color;
                    const [a, b] = [over(page, ink), over(page)].sort((p, q) => q - p);
                    return [e.textContent || ink, (a + 0.05) / (b + 0.05)];
                });
        }""",
        [selector, own_text],
    )
