"""Blocks of code without the empty line at their end.

doctest reads a page as it is, and would take the fence that ends a block for a part of
what is printed; so an empty line goes before it, which nobody needs to see.
"""

from docutils import nodes


def strip(app, doctree):
    """Take empty lines from the end of each literal block."""
    for block in doctree.findall(nodes.literal_block):
        text = block.astext()
        if text.startswith(">>>") and text != text.rstrip():
            block.rawsource = text.rstrip()
            block.children = []
            block += nodes.Text(block.rawsource)


def setup(app):
    """Strip each page when it is read."""
    app.connect("doctree-read", strip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
