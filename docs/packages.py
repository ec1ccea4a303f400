"""The list of packages and files in design.md, made from the docstrings.

    python docs/packages.py          # prints it
    python docs/packages.py --write  # and puts it into design.md

What a package is for, and a line for each of its files, stand in the docstring of its
``__init__``; the first sentence of a file at the top is its line. What a package may
import is what ``tests/test_imports.py`` enforces.
"""

import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nettrim_jax"
RULES = ROOT / "tests" / "test_imports.py"
PAGE = ROOT / "docs" / "design.md"
BEGIN = "<!-- begin: made by docs/packages.py -->"
END = "<!-- end: made by docs/packages.py -->"
ITEM = re.compile(r"^- ``(\w+)``: (.+?)(?=^- ``|\Z)", re.MULTILINE | re.DOTALL)


def docstring(path):
    """The docstring of a file."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def flat(text):
    """Text on one line, for a cell of a Markdown table."""
    text = re.sub(r":\w+:`(?:nettrim_jax\.)?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", r"\|").rstrip(".")


def purpose(package):
    """What a package is for."""
    return flat(docstring(PACKAGE / package / "__init__.py").split("\n- ")[0])


def listed(package):
    """The files that a package's docstring lists, in its order, with their lines."""
    text = docstring(PACKAGE / package / "__init__.py")
    return {name: flat(line) for name, line in ITEM.findall(text)}


def sentence(path):
    """The first sentence of a file's docstring."""
    first = docstring(path).split("\n\n")[0]
    return flat(re.split(r"(?<=[^.][.]) (?=[A-Z])", first, maxsplit=1)[0])


def home(name):
    """The file whose docstring says what a file or a package is for."""
    package = PACKAGE / name / "__init__.py"
    return package if package.exists() else PACKAGE / f"{name}.py"


def rules():
    """The tables of who may import whom: ground, packages, and what is above them."""
    wanted, found = ("GROUND", "PACKAGES", "TOP"), {}
    for node in ast.parse(RULES.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in wanted:
            found[target.id] = ast.literal_eval(node.value)
    return found


def table(heading, rows):
    """Lines of a Markdown table."""
    rows = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(row) + " |" for row in rows]


def imports(names):
    """What a package may import, in words."""
    return ", ".join(f"`{name}`" for name in sorted(names)) or "nothing"


def section():
    """The Markdown text."""
    given = rules()
    packages, ground, top = given["PACKAGES"], sorted(given["GROUND"]), given["TOP"]
    files = {
        "The ground": {name: sentence(home(name)) for name in ground},
        **{f"`{name}`": listed(name) for name in ground if (PACKAGE / name).is_dir()},
        **{f"`{package}`": listed(package) for package in packages},
        "The top": {name: sentence(home(name)) for name in top},
    }
    rows = [[f"`{name}`", purpose(name), imports(packages[name])] for name in packages]
    lines = table(["package", "what it is for", "may import beside the ground"], rows)
    for heading, found in files.items():
        rows = [[f"`{name}`", line] for name, line in found.items()]
        lines += ["", f"### {heading}", "", *table(["file", "what is in it"], rows)]
    return "\n".join(lines)


def written():
    """What stands between the two marks in design.md."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


def main():
    """Prints the section, or writes it."""
    if "--write" not in sys.argv:
        print(section())
        return
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
