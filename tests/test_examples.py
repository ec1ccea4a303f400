"""The examples at tiny settings, and what they are there to show."""

import pathlib
import re
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    """An example by name, and its command line."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return __import__(name)

    return load


@pytest.mark.slow
def test_sample_complexity(example, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    settings = {"inputs": 16, "nonzeros": 2, "trials": 3, "out": picture}
    names = [word for name, value in settings.items() for word in (f"--{name}", value)]
    module = example("sample_complexity", *names)
    module.main()
    said = capsys.readouterr().out
    right, tried = re.search(r"from the theorem's P on: (\d+) of (\d+)", said).groups()
    assert right == tried != "0"
    assert picture.stat().st_size > 10000
    found, _ = module.experiment(16, np.array([1, 4]), np.array([4, 64]), 5)
    assert found.shape == (2, 2, 5)
    # four samples do not tell four weights of sixteen, 64 tell all
    assert (found[:, 1] <= module.CLOSE).all() and (found[1, 0] > module.CLOSE).all()
