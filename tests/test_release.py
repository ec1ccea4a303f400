"""What is released: the source archive and the wheel, as someone else installs them."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, cwd, error=True, **more):
    """A command without the tests' settings; what it said."""
    ours = ("JAX_", "XLA_", "PYTHON")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=kept | {"JAX_PLATFORMS": "cpu"} | more,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == error, said[-4000:]
    return said


def members(wheel):
    """The files of a wheel with their bytes."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# ---- what is said of it


def citation():
    """The flat entries of the file for citations."""
    text = (ROOT / "CITATION.cff").read_text()
    return dict(re.findall(r'^([\w-]+): "?([^"\n]+)"?$', text, re.MULTILINE))


def test_the_citation_is_of_this_project():
    found = citation()
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert found["title"] == "nettrim_jax" and found["license"] == PROJECT["license"]
    assert found["version"] == PROJECT["version"]
    text = (ROOT / "CITATION.cff").read_text()
    for needed in ("message:", "authors:", "references:"):
        assert f"\n{needed}" in text, needed


def test_everyday_use_needs_no_extra():
    names = [re.split(r"[>=<]", line)[0] for line in PROJECT["dependencies"]]
    assert names == ["jax", "jaxlib", "flax", "optax", "jaxopt", "chex"]


# ---- archives


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    direct = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT]
    run(*direct, cwd=tmp_path)
    [other] = tmp_path.glob("*.whl")
    # the other one was built from the source archive
    assert members(other) == members(wheel)
    assert other.name == wheel.name


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(wheel):
    here = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "nettrim_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"{wheel.name.rsplit('-', 3)[0]}.dist-info/"
    held = set(members(wheel))
    assert {name for name in held if not name.startswith(info)} == here
    assert "nettrim_jax/py.typed" in held and f"{info}licenses/LICENSE" in held


@pytest.mark.slow
def test_the_index_would_take_them(wheel):
    pytest.importorskip("twine")
    archives = sorted(wheel.parent.iterdir())
    assert [path.suffix for path in archives] == [".whl", ".gz"]
    said = run(
        sys.executable, "-m", "twine", "check", "--strict", *archives, cwd=wheel.parent
    )
    assert said.count("PASSED") == 2


# ---- the wheel, installed elsewhere


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The interpreter of a fresh environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel, cwd=folder)
    return python


SMOKE = """
import importlib.metadata, pathlib, sys
import jax, jax.numpy as jnp, optax
import nettrim_jax as nt

assert pathlib.Path(nt.__file__).is_relative_to(sys.prefix), nt.__file__
print(importlib.metadata.version("nettrim-jax"))
keys = iter(jax.random.split(jax.random.key(0), 3))
def normal(*shape):
    return jax.random.normal(next(keys), shape)
params = {"a": normal(16, 24), "b": normal(24, 5)}
x = normal(200, 16)
def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]
for method in (nt.NetTrim(0.2), nt.Sparsity(0.5), nt.SparseGPT(nt.NM(2, 4))):
    pruned = nt.prune(params, apply_fn, x, method=method, mode="cascade")
    assert 0 < pruned.report.sparsity < 1 and 0 < pruned.report.deviation < 1
    again = nt.Report.from_dict(pruned.report.to_dict())
    assert again.nonzeros == pruned.report.nonzeros
small = nt.shrink(nt.prune(params, apply_fn, x, method=nt.Units(0.5)), apply_fn, x)
assert small.params["a"].shape == (16, 12)
tx = nt.keep_sparse(optax.sgd(0.1), pruned.mask)
updates, _ = tx.update(params, tx.init(pruned.params), pruned.params)
assert ((pruned.params["a"] + updates["a"])[~pruned.mask["a"]] == 0).all()
program = nt.relu_program(x, jax.nn.relu(x @ params["a"]), 5.0)
assert int(nt.solve(program).result) == nt.results.CONVERGED
print("works")
"""


@pytest.mark.slow
def test_the_installed_wheel_works(installed):
    folder = installed.parent.parent
    assert run(installed, "-W", "error", "-c", "import nettrim_jax", cwd=folder) == ""
    run(installed, "-m", "pip", "check", cwd=folder)
    said = run(installed, "-c", SMOKE, cwd=folder).split()
    assert said == [PROJECT["version"], "works"]


@pytest.mark.slow
def test_the_readme_runs_with_the_installed_wheel(installed):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    said = run(installed, "-c", code, cwd=installed.parent.parent)
    assert "output moved by" in said and "hidden" in said


GOOD = """
import jax
import nettrim_jax as nt

def apply_fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["w"])

params = {"w": jax.numpy.ones((8, 4))}
pruned = nt.prune(params, apply_fn, jax.numpy.ones((9, 8)), method=nt.Sparsity(0.5))
sparsity: float = float(pruned.report.sparsity)
path: str = pruned.report.sites[0].path
solution: nt.Solution = nt.solve(nt.linear_program(params["w"], params["w"], 0.1))
"""
BAD = """
import nettrim_jax as nt

nt.prune({}, lambda params, x: x, None, mod="cascade")
nt.Sparsity(0.5).level.nothing
nt.ADMM(max_steps="many")
"""


@pytest.mark.slow
def test_types_reach_a_user(installed):
    pyright = shutil.which("pyright")
    if not pyright and not importlib.util.find_spec("pyright"):
        pytest.skip("no pyright")
    command = [pyright] if pyright else [sys.executable, "-m", "pyright"]
    folder = installed.parent.parent
    files = {"good": GOOD, "bad": BAD}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    command += ["--pythonpath", installed]
    said = run(*command, folder / "good.py", cwd=folder)
    assert "0 errors" in said
    said = run(*command, folder / "bad.py", cwd=folder, error=False)
    found = set(re.findall(r"bad\.py:(\d+):\d+ - error", said))
    assert found == {"4", "5", "6"}, said
