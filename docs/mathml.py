"""Formulas as MathML, which browsers draw by themselves, offline and without a script.

Knows Sphinx and the converter; knows no page.
"""

import re
from xml.etree import ElementTree

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
SPACE = "http://www.w3.org/1998/Math/MathML"
LEFT = re.compile(r"\\[A-Za-z]+|>&<")
# operators that have their limits below and above them on a line of their own
LIMITS = {"min", "max", "sup", "argmin", "\u2211", "\u220f"}
BELOW = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}


def mathml(formula, node, display="inline"):
    """The formula's markup; a warning, which fails the build, for what is not known."""
    # the converter knows this environment by its other name
    formula = formula.strip().replace("{aligned}", "{align*}")
    made = convert(formula, display=display)
    unknown = sorted(set(LEFT.findall(made)))
    if unknown:
        LOGGER.warning("no MathML for %s in a formula", unknown, location=node)
    if display == "inline":
        return made
    ElementTree.register_namespace("", SPACE)
    tree = ElementTree.fromstring(made)
    for part in tree.iter():
        name = part.tag.removeprefix(f"{{{SPACE}}}")
        if name in BELOW and "".join(part[0].itertext()).strip() in LIMITS:
            part.tag = f"{{{SPACE}}}{BELOW[name]}"
    return ElementTree.tostring(tree, encoding="unicode")


def visit_inline(translator, node):
    """Writes a formula within a line."""
    translator.body.append(mathml(node.astext(), node))
    raise SkipNode


def visit_block(translator, node):
    """Writes a formula on lines of its own; a wide one scrolls by itself."""
    made = mathml(node.astext(), node, "block")
    translator.body.append(f'<div class="formula">{made}</div>\n')
    raise SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
