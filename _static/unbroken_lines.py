"""A Sphinx extension: lines are not broken where a reader would stumble.

MathJax shows a formula as a picture, and browsers break lines on either side of pictures, also
between a formula and its punctuation. A number keeps its "%", too.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_FORMULA = re.compile(r'\(?<span class="math notranslate nohighlight">[^<]*</span>[,.;:!?)’”-]*')
_PERCENT = re.compile(r"(?<=\d) %(?=[\s<.,;:)])")


def unbroken(body: str) -> str:
    """Keep formulas with their brackets and punctuation, and numbers with their "%"."""
    body = _FORMULA.sub(r'<span class="ll-unbroken">\g<0></span>', body)
    return _PERCENT.sub("\N{NO-BREAK SPACE}%", body)


def _write(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = unbroken(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx to call this before it writes a page."""
    app.connect("html-page-context", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
