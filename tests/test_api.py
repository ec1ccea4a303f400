"""The names and signatures that users rely on, as ``tests/api.txt`` holds them."""

import inspect
import pathlib

import nettrim_jax as nt

SNAPSHOT = pathlib.Path(__file__).with_name("api.txt")


def lines():
    """One line per public name: its kind or signature."""
    out = []
    for name in nt.__all__:
        value = getattr(nt, name)
        if inspect.ismodule(value):
            out.append(f"{name}: module")
        elif isinstance(value, type) and issubclass(value, Exception):
            out.append(f"{name}: error")
        else:
            parameters = inspect.signature(value).parameters.values()
            # types are for readers; names, order and defaults are the contract
            given = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
            out.append(f"{name}{inspect.Signature(given)}")
    return out


def test_names_and_signatures_are_those_of_the_snapshot():
    """Where one is meant to change: ``python tests/test_api.py``, and the changelog."""
    assert lines() == SNAPSHOT.read_text().splitlines()


def test_flat_names_are_those_of_the_namespaces():
    for space in (nt.methods, nt.patterns, nt.penalties, nt.training):
        for name in getattr(space, "__all__", ()):
            assert getattr(nt, name) is getattr(space, name), name
    assert nt.Sparsity is nt.patterns.Sparsity
    assert nt.NM is nt.patterns.NM


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(lines()) + "\n")
