"""The changelog is open at the top."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_unreleased_changes_are_on_top():
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings and headings[0] == "[Unreleased]"
    assert headings.count("[Unreleased]") == 1


def test_every_section_is_of_a_known_kind():
    text = (ROOT / "CHANGELOG.md").read_text()
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert kinds <= known
    assert not re.search(r"^### .*\n+(?=#|\Z)", text, re.MULTILINE), "empty section"
