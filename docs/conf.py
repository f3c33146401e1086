"""Sphinx configuration: Markdown by MyST, the theme Furo, nothing fetched from the network."""

from __future__ import annotations

import re
from pathlib import Path

_INIT = Path(__file__).parents[1] / "services/plaudit/__init__.py"

project = "Plaudit"
author = "The Plaudit authors"
copyright = "The Plaudit authors, Apache-2.0"
release = re.search(r'__version__ = "(.+?)"', _INIT.read_text(encoding="utf-8"))[1]  # type: ignore[index]

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # generated pages may begin with a note
nitpicky = True

html_theme = "furo"
html_title = f"Plaudit {release}"
html_copy_source = False
html_show_sphinx = False
