"""A Sphinx extension: no line begins with the comma that follows a formula.

MathJax shows a formula as a picture, and browsers break lines on either side of pictures, also
between a formula and its punctuation.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_FORMULA = re.compile(r'\(?<span class="math notranslate nohighlight">[^<]*</span>[,.;:!?)’”-]*')


def unbroken(body: str) -> str:
    """Keep each formula in the text of a page together with its brackets and punctuation."""
    return _FORMULA.sub(r'<span class="ll-unbroken">\g<0></span>', body)


def _write(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = unbroken(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx to call this before it writes a page."""
    app.connect("html-page-context", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
