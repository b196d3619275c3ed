"""A Sphinx extension: each script of a page once.

The theme's kernel service adds its constants twice, and browsers say so on every page.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def _once(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    scripts = {(s.filename or "", s.attributes.get("body")): s for s in context["script_files"]}
    context["script_files"][:] = scripts.values()


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx to call this before it writes a page."""
    app.connect("html-page-context", _once, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
