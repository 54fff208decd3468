"""Remove the empty line at the end of code blocks.

doctest reads the source of a page, and would take the fence that ends a block as part
of the expected output. Sources therefore have an empty line before the fence, which
this extension hides from readers.
"""

from docutils import nodes


def strip(app, doctree):
    """Remove empty lines at the end of each literal block."""
    for block in doctree.findall(nodes.literal_block):
        text = block.astext()
        if text.startswith(">>>") and text != text.rstrip():
            block.rawsource = text.rstrip()
            block.children = []
            block += nodes.Text(block.rawsource)


def setup(app):
    """Register `strip`, which is called for each page that is read."""
    app.connect("doctree-read", strip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
