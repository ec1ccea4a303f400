"""The changelog is open at the top, and the API page has every public name."""

import pathlib
import re

import pytest

import nettrim_jax

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


@pytest.mark.parametrize("name", nettrim_jax.__all__)
def test_public_name_is_in_the_api_page(name):
    text = (ROOT / "docs" / "api.md").read_text()
    directive = rf"^\.\. auto\w+:: nettrim_jax\.{name}$"
    assert re.search(directive, text, re.MULTILINE), (
        f"docs/api.md has no autodoc directive for nettrim_jax.{name}"
    )
