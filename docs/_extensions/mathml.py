"""Render formulas as MathML, which browsers display without a script.

Sphinx's own renderers need LaTeX at build time, or a script from the network when the
page is read. docutils has a converter from LaTeX to MathML that needs neither. This
extension makes it available as a renderer of Sphinx.
"""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)


def _convert(node, *, as_block):
    """Return a formula as MathML; if that fails, warn and return its source."""
    # The converter does not support it within a group, and it only sets the size.
    source = re.sub(r"\\textstyle\s*", "", node.astext())
    try:
        return tex2mathml(source, as_block=as_block)
    except MathError as error:
        logger.warning("formula %r: %s", source, error, location=node)
        return nodes.literal(text=source).astext()


def visit_math(self, node):
    """Write a formula within a line."""
    self.body.append(_convert(node, as_block=False))
    raise nodes.SkipNode


def visit_math_block(self, node):
    """Write a displayed formula, which scrolls if it is too wide."""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(_convert(node, as_block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
