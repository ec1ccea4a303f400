"""Sphinx: MyST pages, docstrings by autodoc and napoleon, doctests of both."""

import pathlib
import sys

import jax
from sphinx.util.typing import stringify_annotation

project = "nettrim_jax"
author = "The nettrim_jax authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = "nettrim_jax"

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
# fields of a record are listed once, in its docstring; types are in its signature
napoleon_use_ivar = True
napoleon_attr_annotations = False

doctest_test_doctest_blocks = "default"


def shorten(app, what, name, obj, options, args, returns):
    """Writes the name of JAX's union of all array-like types, not its members."""
    members = stringify_annotation(jax.typing.ArrayLike, "smart")
    return args and args.replace(members, "ArrayLike"), returns


def draw(app):
    """Draws the pictures of the pages where the pages look for them."""
    sys.path.insert(0, str(app.srcdir))
    import figures

    figures.draw_if_older(pathlib.Path(app.srcdir) / "_figures")


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", draw)
    app.connect("autodoc-process-signature", shorten)
