"""Every public name stands in an example that is run: docstring, page or tutorial.

Docstrings run with the tests of their files, pages by the doctest builder, the README's
and CONTRIBUTING.md's code in their tests, and tutorials when pages are built.
"""

import ast
import doctest
import inspect
import pathlib
import re

import pytest

import nettrim_jax as nt

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
BLOCKS = {
    "doctest": re.compile(r"```\{doctest\}[^\n]*\n(.*?)```", re.DOTALL),
    "cell": re.compile(r"```\{code-cell\}[^\n]*\n(.*?)```", re.DOTALL),
    "code": re.compile(r"```python\n(.*?)```", re.DOTALL),
}
PARSER = doctest.DocTestParser()


def prompts(text):
    """What is typed at the prompts of a text, and what is printed there."""
    for one in PARSER.get_examples(text):
        yield one.source
        yield one.want


def examples():
    """All code that is run, and what it prints."""
    for path in sorted((ROOT / "nettrim_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, DOCUMENTED):
                yield from prompts(ast.get_docstring(node) or "")
    for path in DOCS.rglob("*.md"):
        if "_build" not in path.parts:
            text = path.read_text()
            for block in BLOCKS["doctest"].findall(text):
                yield from prompts(block)
            yield from BLOCKS["cell"].findall(text)
    for name in ("README.md", "CONTRIBUTING.md"):
        yield from BLOCKS["code"].findall((ROOT / name).read_text())


TEXT = "\n".join(examples())


def shown(name):
    """Whether an example uses a name, imports it, or prints it as a type's."""
    written = (rf"\bnt\.(?:\w+\.)?{name}\b", rf"\bimport .*\b{name}\b")
    printed = (rf"'{name}'", rf"^{name} \|")
    ways = (*written, *printed)
    return any(re.search(way, TEXT, re.MULTILINE) for way in ways)


def public():
    """Every public name that is no module, those of namespaces as well."""
    names = {name for name in nt.__all__ if not inspect.ismodule(getattr(nt, name))}
    for name in nt.__all__:
        space = getattr(nt, name)
        if inspect.ismodule(space):
            names |= {n for n in getattr(space, "__all__", ()) if n[0] != "_"}
            here = [
                n
                for n, value in vars(space).items()
                if getattr(value, "__module__", "") == f"nettrim_jax.{name}"
            ]
            errors = [n for n in here if n.endswith("Error")]
            names |= {*errors, *(here if name == "plots" else ())}
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("name", public())
def test_public_name_is_in_an_example_that_runs(name):
    assert shown(name), (
        f"no example that runs uses nettrim_jax.{name}; add one to its docstring or to "
        "its page in docs/api/"
    )


# ---- lines within text, which are not run


def calls(page):
    """Every call of a public name that stands between backticks, or in a table."""
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        # a line may leave out what is not its matter
        text = span.replace("=...", "=None").replace("...,", "").replace(", ...", "")
        try:
            tree = ast.parse(text.replace("...", ""))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if getattr(node.func.value, "id", "") == "nt":
                    yield node.func.attr, [word.arg for word in node.keywords]


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted(DOCS.glob("*.md"))],
    ids=lambda page: page.name,
)
def test_lines_in_text_call_what_there_is(page):
    for name, words in calls(page):
        assert hasattr(nt, name), f"{page.name} calls nt.{name}"
        parameters = inspect.signature(getattr(nt, name)).parameters
        taken = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        unknown = {word for word in words if word} - set(parameters)
        assert taken or not unknown, f"{page.name}: nt.{name} takes no {unknown}"


def test_there_are_lines_in_text():
    assert len([*calls(DOCS / "coming_from.md")]) > 25


# ---- codes and errors


@pytest.mark.parametrize("code", sorted(nt.results.MESSAGES))
def test_every_code_has_what_to_do(code):
    text = (DOCS / "api" / "results.md").read_text()
    name = nt.results.NAMES[code]
    [row] = re.findall(rf"^\| {code} \| `{name}` \|(.*)\|$", text, re.MULTILINE)
    assert all(cell.strip() for cell in row.split("|"))


def test_every_error_has_what_to_do():
    text = (DOCS / "api" / "results.md").read_text()
    rows = re.findall(r"^\| `(\w+Error)` \|", text, re.MULTILINE)
    errors = {
        name
        for name, value in vars(nt.results).items()
        if isinstance(value, type) and issubclass(value, nt.NetTrimError)
    }
    assert set(rows) == errors - {"NetTrimError"} and len(rows) == len(set(rows))
