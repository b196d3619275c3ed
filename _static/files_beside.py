"""A Sphinx extension: files that a page offers to save stand beside the page, not in it.

In a notebook such a link holds the whole file, as an address that begins with "data:". In the book
each becomes a file, which no reader loads before she asks for it.
"""

from __future__ import annotations

import hashlib
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from sphinx.application import Sphinx

_OFFERED = re.compile(r'(?<=<a download=")([^"/]+)(" href=")(data:[^"]*)(?=")')


def beside(body: str, folder: Path, address: str) -> str:
    """Write the files that a page offers into the folder, and link to them there.

    Args:
        body: the page.
        folder: in the built book.
        address: of the folder, as the page has it.
    """

    def write(link: re.Match[str]) -> str:
        name, between, content = link.groups()
        with urlopen(unescape(content)) as file:
            kept = file.read()
        path = Path(hashlib.sha256(kept).hexdigest()[:12], unescape(name))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(kept)
        return f"{name}{between}{address}/{quote(path.as_posix())}"

    return _OFFERED.sub(write, body)


def _write(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        folder = Path(app.outdir, "_downloads")
        context["body"] = beside(context["body"], folder, context["pathto"](folder.name, 1))


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx to call this before it writes a page."""
    app.connect("html-page-context", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
