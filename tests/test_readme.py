"""The README: its code runs, and prints what the README says it prints."""

import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def cells(text):
    return [line.split() for line in text.strip().splitlines()]


def test_code_prints_what_is_shown():
    # a fresh process: users have neither float64 nor strict promotion on
    run = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]],
        capture_output=True,
        text=True,
        cwd=README.parent,
        check=True,
    )
    shown, printed = cells(blocks("text")[0]), cells(run.stdout)
    assert [len(row) for row in shown] == [len(row) for row in printed]
    assert shown[0] == printed[0]
    # another machine rounds otherwise: counts and errors agree, steps and gaps roughly
    for want, got in zip(shown[1:3], printed[1:3], strict=True):
        assert want[:3] == got[:3]
        for a, b in zip(want[3:8], got[3:8], strict=True):
            assert float(b.rstrip("%")) == pytest.approx(float(a.rstrip("%")), rel=0.05)
        assert float(got[9]) <= 1e-3
    assert shown[3][:2] == printed[3][:2]


def test_is_short():
    assert len(README.read_text().splitlines()) < 120
