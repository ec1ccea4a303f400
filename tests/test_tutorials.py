"""Tutorials and their notebooks: in step, without outputs, and they run."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOTEBOOKS = ROOT / "examples" / "notebooks"
NAMES = [page.stem for page in PAGES]
LIMIT = 600  # seconds of a cell, on cores that other work shares
# what a fresh environment installs and runs, outside of the repository
FRESH = ("linen", "frameworks", "training")


def cells(name, kind="code"):
    """The texts of a notebook's cells."""
    found = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_every_tutorial_has_its_notebook_and_its_line():
    assert NAMES and NAMES == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    text = (ROOT / "docs" / "tutorials.md").read_text()
    for name in NAMES:
        assert text.count(f"(tutorials/{name}.md)") == 1, name
        assert text.count(f"\ntutorials/{name}\n") == 1, name


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_that_of_its_tutorial(name):
    pytest.importorskip("jupytext")
    spec = importlib.util.spec_from_file_location(
        "notebooks", ROOT / "docs" / "notebooks.py"
    )
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    page = ROOT / "docs" / "tutorials" / f"{name}.md"
    written = json.loads(notebooks.target(page).read_text())
    assert json.loads(notebooks.notebook(page)) == written, (
        "the notebooks are not what the tutorials say; run python docs/notebooks.py"
    )


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_clean(name):
    found = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    first, *rest = cells(name)
    assert "pip" in first and "jax.devices()" in first
    assert not any("pip" in text for text in rest)
    for text in rest:
        assert not re.search(r"""["'](?:/\w|~/|[A-Z]:\\)""", text), "an absolute path"
    for text in cells(name, "markdown"):
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in link or (NOTEBOOKS / link).exists(), link


def environment():
    """What a user's process would have: nothing of the tests' settings but the CPU."""
    ours = ("JAX_", "XLA_", "PYTHON", "MPL")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    # without MPLBACKEND the kernel has pictures as outputs
    return kept | {"JAX_PLATFORMS": "cpu"}


RUN = """
import pathlib, sys
import nbformat
from nbclient import NotebookClient

path = pathlib.Path(sys.argv[1])
read = nbformat.read(path, as_version=4)
client = NotebookClient(read, timeout=%d, resources={"metadata": {"path": path.parent}})
client.execute()
outputs = [out for cell in read.cells for out in cell.get("outputs", ())]
said = [out.get("text", "") for out in outputs if out.get("name") != "stderr"]
pictures = sum("image/png" in out.get("data", ()) for out in outputs)
print("".join(said) + f"{pictures} pictures")
"""


def execute(python, notebook, **more):
    """Runs a notebook by the kernel of an interpreter; what its cells printed."""
    run = subprocess.run(
        [python, "-c", RUN % LIMIT, notebook],
        env=environment() | more,
        cwd=notebook.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name):
    for needed in ("nbclient", "ipykernel", "sklearn", "equinox", "haiku"):
        pytest.importorskip(needed)
    said = execute(sys.executable, NOTEBOOKS / f"{name}.ipynb", PYTHONPATH=str(ROOT))
    assert re.search(r"^JAX [\d.]+ on \w+", said, re.MULTILINE)
    drawn = sum(text.rstrip().endswith(";") for text in cells(name))
    assert said.rstrip().endswith(f"{drawn} pictures")


@pytest.mark.slow
def test_notebooks_run_where_nothing_is_installed(tmp_path, wheel):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    needed = ["nbclient", "ipykernel"]
    subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    for name in FRESH:
        copy = folder / f"{name}.ipynb"
        copy.write_bytes((NOTEBOOKS / copy.name).read_bytes())
        assert "JAX" in execute(python, copy)
