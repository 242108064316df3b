"""The notebooks run from the first cell to the last, with tiny budgets in the place of their parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel for the notebooks")
nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel for the notebooks")
pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel for the notebooks")

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
MODEL = {"preset": "rsq_vae", "network": "digits", "num_levels": 2, "hidden_size": 8, "codebook_size": 8}
PARAMETERS = {
    "quickstart": {},
    "own_data": {"TOKENIZER_EPOCHS": 0.2, "PRIOR_EPOCHS": 0.2, "MODEL": MODEL},
    "hierarchies_and_progressive_coding": {"STEPS": 20},
}


def notebook(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_all_are_run_and_stored_without_outputs() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(PARAMETERS)
    for name in PARAMETERS:
        stored = notebook(name)
        nbformat.validate(stored)
        assert all(not cell.outputs and cell.execution_count is None for cell in stored.cells if "outputs" in cell)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    nb = notebook(name)
    (given,) = (cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", ()))
    for parameter, value in PARAMETERS[name].items():
        assert f"{parameter} = " in given.source
        given.source += f"\n{parameter} = {value!r}"
    nbclient.NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in nb.cells if "outputs" in cell for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
