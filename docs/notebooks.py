"""The notebooks of ``examples/notebooks``, made from the tutorials of these pages.

    python docs/notebooks.py

writes them all. They have no outputs, which would grow old, and a first cell that
installs the library where it is missing.
"""

import pathlib
import re

import jupytext
import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
FOLDER = ROOT / "examples" / "notebooks"
LINK = re.compile(r"\]\(((?:\.\./)?)(\w+)\.md((?:#[\w-]+)?)\)")
FIRST = """\
# Installs what is missing, and says which device there is. In Colab, put the wheel of
# nettrim_jax beside this notebook first; or set NETTRIM_SOURCE to a wheel or a clone.
import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys

needed = ("nettrim_jax", "equinox", "haiku", "matplotlib", "sklearn")
if not all(importlib.util.find_spec(name) for name in needed):
    here = pathlib.Path.cwd()
    around = (here, *here.parents)
    clones = [p for p in around if (p / "nettrim_jax/typing.py").exists()]
    wheels = sorted(here.glob("nettrim_jax-*.whl"))[-1:]
    found = [*filter(None, [os.environ.get("NETTRIM_SOURCE")]), *wheels, *clones]
    if not found:
        raise FileNotFoundError("put nettrim_jax-*.whl beside this notebook")
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    source = pathlib.Path(found[0]).resolve()
    subprocess.run([*pip, f"{source}[tutorials]"], check=True)

jax = importlib.import_module("jax")
print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")"""


def link(match):
    """Where a page is, seen from a notebook."""
    up, name, anchor = match.groups()
    return f"](../../docs/{name}.md{anchor})" if up else f"]({name}.ipynb)"


def notebook(page):
    """The text of a tutorial's notebook."""
    made = jupytext.reads(page.read_text(), fmt="md:myst")
    title, rest = made.cells[0], made.cells[1:]
    made.cells = [title, nbformat.v4.new_code_cell(FIRST), *rest]
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(link, cell.source)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    made.nbformat, made.nbformat_minor = 4, 5
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def target(page):
    """The notebook of a tutorial."""
    return FOLDER / f"{page.stem}.ipynb"


def main():
    """Writes all notebooks, and removes those of tutorials that are gone."""
    FOLDER.mkdir(exist_ok=True)
    pages = sorted(TUTORIALS.glob("*.md"))
    for page in pages:
        target(page).write_text(notebook(page))
    for old in set(FOLDER.glob("*.ipynb")) - {target(page) for page in pages}:
        old.unlink()


if __name__ == "__main__":
    main()
