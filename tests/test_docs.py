"""The pages of docs/: every public name once, every file listed, none that is gone."""

import ast
import importlib.util
import inspect
import pathlib
import re

import pytest

import nettrim_jax as nt

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "api.md", *sorted((DOCS / "api").glob("*.md"))]
SPACES = {
    name: getattr(nt, name)
    for name in nt.__all__
    if inspect.ismodule(getattr(nt, name))
}
PACKAGE = ROOT / "nettrim_jax"
FOLDERS = [p.parent.name for p in sorted(PACKAGE.glob("*/__init__.py"))]

spec = importlib.util.spec_from_file_location("packages", DOCS / "packages.py")
packages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(packages)


# ---- API pages


def targets():
    """What the API pages describe, in full names, as often as they do."""
    directive = r"^\.\. (?:auto\w+|py:module):: nettrim_jax\.([\w.]+)$"
    return [
        name
        for page in PAGES
        for name in re.findall(directive, page.read_text(), re.MULTILINE)
    ]


@pytest.mark.parametrize("name", nt.__all__)
def test_public_name_is_described_once(name):
    assert targets().count(name) == 1, (
        f"docs/api/ has {targets().count(name)} autodoc directives for "
        f"nettrim_jax.{name}; expected one"
    )


@pytest.mark.parametrize("space", SPACES)
def test_names_of_a_namespace_are_described_once(space):
    for name in getattr(SPACES[space], "__all__", ()):
        ours = [name, f"{space}.{name}"]
        assert sum(targets().count(one) for one in ours) == 1, f"nt.{space}.{name}"


@pytest.mark.parametrize("space", ["plots", "results"])
def test_members_of_a_module_are_described(space):
    text = (DOCS / "api" / f"{space}.md").read_text()
    listed = re.search(r":members: (.*)$", text, re.MULTILINE)[1].split(", ")
    for name in listed:
        assert hasattr(SPACES[space], name), name
    for name, value in vars(SPACES[space]).items():
        error = isinstance(value, type) and issubclass(value, Exception)
        wanted = error or space == "plots" and inspect.isfunction(value)
        here = getattr(value, "__module__", "") == f"nettrim_jax.{space}"
        if wanted and here and not name.startswith("_") and name not in nt.__all__:
            assert name in listed, f"docs/api/{space}.md leaves out {name}"


def test_only_public_names_are_described():
    for name in targets():
        space, _, rest = name.rpartition(".")
        where = SPACES[space] if space else nt
        assert rest in where.__all__, name


def test_docstrings_have_formulas_that_pages_draw():
    # what stands between dollars is drawn in pages, and in docstrings stays as it is
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                assert "$" not in text, f"{path.name}: use :math: or .. math::"


def test_every_page_is_in_the_overview():
    text = (DOCS / "api.md").read_text()
    for page in PAGES[1:]:
        assert text.count(f"(api/{page.name})") == 1, page.name
        assert text.count(f"\napi/{page.stem}\n") == 1, page.name


# ---- files


def test_design_has_the_packages_as_their_docstrings_do():
    assert packages.written() == packages.section(), (
        "docs/design.md is not what the docstrings of the packages say; run "
        "python docs/packages.py --write"
    )


@pytest.mark.parametrize("package", FOLDERS)
def test_a_package_lists_its_files(package):
    files = {path.stem for path in (PACKAGE / package).glob("*.py")} - {"__init__"}
    listed = packages.listed(package)
    assert set(listed) == files, (
        f"nettrim_jax/{package}/__init__.py: a line for each of its files, "
        f"- ``name``: what is in it; these differ: {sorted(set(listed) ^ files)}"
    )
    assert all(listed.values()) and packages.purpose(package)


TEXTS = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TEXTS = [path for path in TEXTS if "_build" not in path.parts]


def source(name):
    """The file that a page names, from the root, the package, or the tests."""
    for folder in (ROOT, PACKAGE, ROOT / "tests", DOCS):
        if (folder / name).exists():
            return folder / name
    return None


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    for name in re.findall(r"[\w/.]*\w+/\w+\.(?:py|md|json)\b", text):
        if "://" not in name and not name.startswith("path/"):
            known = source(name) or (page.parent / name).exists()
            assert known, f"{page.name} names {name}, which is not there"
    for name in re.findall(r"`(\w+\.py)`", text):
        assert source(name) or [*PACKAGE.rglob(name)], f"{page.name} names {name}"


def test_names_in_a_file_that_the_design_sends_to_are_there():
    rows = [
        line
        for line in (DOCS / "design.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    text = "\n".join(rows)
    found = re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, (?:and )?)?)+)", text)
    assert len(found) > 8
    for file, names in found:
        code = source(file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            last = name.rsplit(".", 1)[-1]
            assert re.search(rf"^ *(?:def|class) {last}\b", code, re.MULTILINE), (
                f"docs/design.md looks for {name} in {file}"
            )


def test_packages_named_in_the_design_are_there():
    text = (DOCS / "design.md").read_text()
    for folder, file in re.findall(rf"`({'|'.join(FOLDERS)})\.(\w+)(?:\.\w+)?`", text):
        assert (PACKAGE / folder / f"{file}.py").exists(), f"{folder}.{file}"
