"""The benchmarks start as their first lines say: as scripts, without a search path."""

import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent / "benchmarks"
SCRIPTS = [p for p in sorted(FOLDER.glob("*.py")) if "argparse" in p.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_says_how_it_is_used(script, tmp_path):
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, script, "--help"]
    said = subprocess.run(command, capture_output=True, cwd=tmp_path, env=bare)
    assert said.returncode == 0, said.stderr.decode()[-500:]
    assert said.stdout.startswith(b"usage")
