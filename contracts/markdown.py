"""Data inside Markdown pages, such as model cards."""

from __future__ import annotations

import html
import re


def escape_markdown(text: object) -> str:
    """Text that Markdown, inside a table too, and HTML show as it is; on one line."""
    line = " ".join(str(text).split())
    return html.escape(re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", line), quote=False)
