"""Sphinx: the pages of this folder, and an API reference made of the docstrings."""

import re

from allmem_mlx import __version__

REPOSITORY = "https://github.com/allmem-mlx/allmem-mlx/blob/main"

project = "allmem_mlx"
author = "allmem_mlx contributors"
html_title = f"{project} {__version__}"
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "special-members": "__call__",
}
autodoc_typehints_format = "short"
napoleon_use_ivar = True
# Functions, methods and modules that docstrings refer to have to be documented; types
# are mostly those of other libraries.
nitpicky = True
nitpick_ignore_regex = [("py:(class|exc|data)", ".*")]


PICTURE = re.compile(r'<picture>.*?<img src="(.*?)" alt="(.*?)".*?</picture>', re.S)


def _link_to_repository(app, name, source):
    """Files outside this folder are no pages of the site. Pictures are copied to it."""
    text = re.sub(r"\]\(\s*\.\./", f"]({REPOSITORY}/", source[0])
    source[0] = PICTURE.sub(r"![\2](\1)", text)


def setup(app):
    app.connect("source-read", _link_to_repository)
