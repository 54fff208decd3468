"""The notebook runs from top to bottom, and holds no outputs in the repository."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="examples are not here")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_clean(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_runs(notebook, tmp_path):
    NotebookClient = pytest.importorskip("nbclient").NotebookClient
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert not any(output.output_type == "error" for output in outputs)
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 3
    (diagram,) = [d for d in shown if "BSDClassifier" in d.get("text/html", "")]
    assert "40 epochs on" in diagram["text/html"]
    texts = [output.text for output in outputs if output.output_type == "stream"]
    assert any("40/40" in text for text in texts)  # the progress bar
    assert "wrong" in "".join(texts)
    assert shown[-1]["text/plain"] == "True"
