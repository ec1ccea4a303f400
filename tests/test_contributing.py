"""The worked examples of CONTRIBUTING.md run, each behind the imports of the first."""

import doctest
import pathlib

import pytest
from marks import only_fast

PAGE = pathlib.Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
SHARED = "Working on it"


def examples():
    """The code of each section, with empty lines for all else: lines keep numbers."""
    found, section, inside = {}, "", False
    lines = PAGE.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("```"):
            inside = line == "```python"
        elif inside:
            found.setdefault(section, [""] * len(lines))[number] = line
    return found


CODE = examples()


def test_there_is_an_example_of_each_kind():
    assert [*CODE] == [SHARED, "A penalty", "A pattern", "A rule", "A method"]


NAMES = [name for name in CODE if name != SHARED]


@pytest.mark.parametrize("name", only_fast(["A method"], NAMES))
def test_example_prints_what_it_says(name):
    pytest.importorskip("cvxpy")
    both = zip(CODE[SHARED], CODE[name], strict=True)
    text = "\n".join(one or other for one, other in both)
    example = doctest.DocTestParser().get_doctest(text, {}, name, str(PAGE), 0)
    said = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not said, "".join(said)
