"""Sphinx: MyST pages and notebooks, docstrings by autodoc and napoleon, doctests."""

import os
import pathlib
import sys

import jax
from sphinx.util.typing import stringify_annotation

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # the modules beside this one

project = "nettrim_jax"
author = "The nettrim_jax authors"
project_copyright = author  # the foot of a page has an empty place without it

extensions = [
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "jupyter_execute"]
source_suffix = {".md": "myst-nb"}

html_theme = "furo"
html_title = "nettrim_jax"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False

# Tutorials are executed anew at every build, so no output is older than the code: all
# of them, or those that DOCS_TUTORIALS names, as in DOCS_TUTORIALS="layer training".
named = os.environ.get("DOCS_TUTORIALS")
# pictures of a tutorial go into its page, not where the caller has matplotlib draw
os.environ.pop("MPLBACKEND", None)
tutorials = sorted(path.stem for path in HERE.glob("tutorials/*.md"))
shown = tutorials if named is None else named.split()
if not set(shown) <= set(tutorials):
    raise ValueError(f"DOCS_TUTORIALS={named!r}: the tutorials are {tutorials}")
nb_execution_mode = "force"
nb_execution_excludepatterns = [
    f"tutorials/{name}.md" for name in tutorials if name not in shown
]
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_ipywidgets_js = {}

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
    import figures

    figures.draw_if_older(pathlib.Path(app.srcdir) / "_figures")


def execute_for_readers(app):
    """Executes tutorials where their outputs are shown: not to look for doctests."""
    if app.builder.format != "html":
        app.config.nb_execution_mode = "off"


def setup(app):
    """Called by Sphinx."""
    # before the extension for notebooks reads the settings
    app.connect("builder-inited", execute_for_readers, priority=100)
    app.connect("builder-inited", draw)
    app.connect("autodoc-process-signature", shorten)
