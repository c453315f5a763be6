"""Every notebook is kept executed, with its figures, and executes anew."""

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"image/png", "image/jpeg", "image/svg+xml"}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook as version 4."""
    return nbformat.v4.reads(path.read_text())


def figures(notebook: nbformat.NotebookNode) -> int:
    """How many pictures its outputs hold."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return sum(bool(PICTURES & out.get("data", {}).keys()) for out in outputs)


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """What keeps a stored notebook from being executed, whole and illustrated."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    found = []
    if counts != list(range(1, len(code) + 1)):
        found.append(f"its cells were executed in the order {counts}")
    found += [
        f"cell {number} ended in {out.ename}"
        for number, cell in enumerate(code, 1)
        for out in cell.outputs
        if out.output_type == "error"
    ]
    if not figures(notebook):
        found.append("it holds no figure")
    return found


@every_notebook
def test_notebook_is_stored_executed(path):
    assert not faults(read(path)), "run `make notebooks`"


@every_notebook
def test_notebook_executes(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws inline
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    notebook = read(path)
    stored = figures(notebook)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    assert not faults(notebook)
    assert figures(notebook) == stored


def test_checker_sees_what_is_wrong():
    cell = nbformat.v4.new_code_cell("1 / 0")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert len(faults(notebook)) == 2
    cell.execution_count = 1
    cell.outputs = [nbformat.v4.new_output("display_data", data={"image/png": ""})]
    assert not faults(notebook)
    cell.outputs.append(nbformat.v4.new_output("error", ename="ZeroDivisionError"))
    assert faults(notebook) == ["cell 1 ended in ZeroDivisionError"]
