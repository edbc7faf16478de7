"""The notebook runs from its first cell to its last, on settings of seconds, and is kept empty."""

from pathlib import Path

import nbformat
import pytest
import tiny_models
from nbclient import NotebookClient

import smallm

FILE = Path(smallm.__file__).parents[1] / "notebooks" / "smallm.ipynb"
TOGGLES = {"activation", "benchmark_model", "dataset", "split", "seeds"}


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def parameters(notebook):
    """The place of the cell with the toggles."""
    (place,) = [
        place
        for place, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    ]
    return place


def with_values(notebook, **values):
    """As papermill does it: a cell after the toggles gives them other values."""
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    notebook.cells.insert(parameters(notebook) + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return notebook


def shown(output):
    """What a cell prints, and the captions below its pictures."""
    return output.get("text", "") + output.get("data", {}).get("text/markdown", "")


def test_the_notebook_is_whole_without_output_and_has_its_toggles(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    given = {}
    exec(notebook.cells[parameters(notebook)].source, given)
    assert set(given) >= TOGGLES
    assert "colab.research.google.com" in notebook.cells[0].source


@pytest.mark.slow
def test_the_notebook_runs_on_tiny_settings(notebook, small_corpus, tmp_path):
    for part in tiny_models.gpt2(context=512):
        part.save_pretrained(tmp_path / "gpt2")
    shape = {"embedding": 16, "hidden": 32, "depth": 2, "heads": 2, "window": 8}
    changed = with_values(
        notebook,
        benchmark_model=str(tmp_path / "gpt2"),
        dataset=str(small_corpus),
        seeds=[1, 2],
        training_tokens=4_096,
        shape={**shape, "vocabulary": 600, "precision": "fp32", "replication": "sequential"},
        scored_bytes=3_000,
        threads=1,
        passages=2,
    )
    client = NotebookClient(
        changed, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = {cell.id: cell.outputs for cell in changed.cells if cell.cell_type == "code"}
    printed = {name: "".join(map(shown, found)) for name, found in outputs.items()}
    pictures = [
        each.data["image/svg+xml"]
        for found in outputs.values()
        for each in found
        if each.output_type == "display_data" and "image/svg+xml" in each.data
    ]
    assert len(pictures) == 4 + shape["depth"]  # one shows all heads, others those of a layer
    assert "bits per byte" in printed["difference"]
    assert "gelu" in printed["compare"]
    assert "gpt2" in printed["compare"]
    assert "failed" not in printed["compare"]
    assert "Dead at the end: gelu" in printed["curves"]
    assert "shuffled 0." in printed["words"]
    assert "Neural networks are" in printed["as-commands"]
    assert "learning_curves.svg" in printed["as-commands"]
