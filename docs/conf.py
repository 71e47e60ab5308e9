"""How the documentation is built: `make docs`."""

from __future__ import annotations

import os
import re
from importlib.metadata import version as installed_version
from typing import Any

project = "sparring"
author = "The sparring contributors"
copyright = author
release = version = installed_version("sparring")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
if os.environ.get("SPARRING_DOCS_ONLINE"):  # links into other projects' pages need their inventories from the network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
suppress_warnings = ["toc.not_readable"]  # the table of contents names its pages in order before each is written

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "sparring"


def _bars_are_norms(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write norms as people do, |x|; reStructuredText would look for a substitution of that name."""
    inside_math = False
    for i, line in enumerate(lines):
        if line.lstrip().startswith(".. math::"):
            inside_math = True
        elif inside_math and line.strip() and not line.startswith(" "):
            inside_math = False
        if not inside_math and not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``|:\w+:`.*?`|`.*?`)", line)
            lines[i] = "".join(
                p if p.startswith(("`", ":")) and p.endswith("`") else p.replace("|", r"\|") for p in parts
            )


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _bars_are_norms)
