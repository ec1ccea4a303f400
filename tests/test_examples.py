"""The examples at tiny settings, and what they are there to show."""

import os
import pathlib
import re
import subprocess
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


@pytest.mark.slow
def test_learned_epsilon():
    # in a process of its own, for it is written for float32
    script = str(EXAMPLES / "learned_epsilon.py")
    run = subprocess.run(
        [sys.executable, script, "--rows", "100", "--steps", "5"],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    limit = float(re.search(r"to bear: ([\d.]+)", run.stdout)[1])
    rows = [line.split("|") for line in run.stdout.splitlines() if line[:1] == "|"][2:]
    (same, learned) = [(int(row[2]), float(row[4])) for row in rows]
    assert same[1] <= limit and learned[1] <= limit
    assert learned[0] < same[0]


@pytest.mark.slow
def test_training(tmp_path):
    # in a process of its own, for it is written for float32
    script, picture = str(EXAMPLES / "training.py"), tmp_path / "picture.png"
    run = subprocess.run(
        [sys.executable, script, "--steps", "60", "--out", picture],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [(line[:20].strip(), line[20:].split()) for line in run.stdout.splitlines()]
    zeros = {name: float(cells[0]) for name, cells in rows[1:-1]}
    sizes = {64 * 300: 0.95, 300 * 100: 0.95, 100 * 10: 0.7}
    want = 100 * sum(n * level for n, level in sizes.items()) / sum(sizes)
    assert zeros.pop("dense") == 0 and len(zeros) == 7
    for name in ("gradual", "rounds", "RigL", "SET"):
        assert zeros[name] == pytest.approx(want, abs=0.06)
    assert picture.stat().st_size > 10000


@pytest.mark.slow
def test_smaller(tmp_path):
    # in a process of its own, for it is written for float32
    script, stored = str(EXAMPLES / "smaller.py"), tmp_path / "small.npz"
    run = subprocess.run(
        [sys.executable, script, "--steps", "60", "--rounds", "2", "--file", stored],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "stopped: until=2" in run.stdout and "same answers: True" in run.stdout
    before, after, anew = (
        line[27:].replace(",", "").split() for line in run.stdout.splitlines()[-3:]
    )
    assert int(after[0]) == int(anew[0]) < 0.2 * int(before[0])
    with np.load(stored) as arrays:
        assert sum(array.size for array in arrays.values()) == int(after[0])
    assert float(after[2]) < 0.7 * float(before[2])
