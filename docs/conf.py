"""The manual, made by Sphinx: python3 -m tools.docs build FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rcdrv import __version__

project = "rcdrv"
release = version = __version__
copyright = "the rcdrv authors, MIT licence"
language = "en"

extensions = ["myst_parser", "tools.docs.directives"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
smartquotes_action = "q"  # quotes only: two hyphens are an option, not a dash
html_theme = "furo"
html_title = f"rcdrv {__version__}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
# Nothing is fetched by a reader's browser: no web fonts, no CDN.
html_theme_options = {"light_css_variables": {"font-stack": "system-ui, sans-serif"}}
html_static_path = ["_static"]
html_css_files = ["manual.css"]
exclude_patterns = ["_build"]
pygments_style = "friendly"
pygments_dark_style = "github-dark"
