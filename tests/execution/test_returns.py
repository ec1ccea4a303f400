"""Every call returns: on few cores no program waits for threads that it holds itself.

Each case runs in a process of its own under a time limit, since what hangs cannot be
interrupted from within.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds; a call takes some 20, and a hang has no end
CODE = """
import jax, jax.numpy as jnp, numpy as np
import nettrim_jax as nt

METHODS = {{
    "sparsity": nt.Sparsity(0.5), "nm": nt.NM(1, 2, pad=True),
    "sparsegpt": nt.SparseGPT(nt.Sparsity(0.5)), "nettrim": nt.NetTrim(0.2, refit=True),
    "layerobs": nt.LayerOBS(nt.Sparsity(0.5)),
}}
rng = np.random.default_rng(0)
kind, size, name, mode = {kind!r}, {size}, {method!r}, {mode!r}
array = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, "f")

def conv(x, w, groups):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"))

if kind in ("depthwise", "grouped"):
    groups = size if kind == "depthwise" else size // 8
    params = {{"w": array(5, 5, size // groups, size), "out": array(size, 4)}}
    x = array(16, 12, 12, size)
    apply_fn = lambda p, x: jax.nn.relu(conv(x, p["w"], groups)).mean((1, 2)) @ p["out"]
elif kind == "scan":
    params, x = {{"w": array(4, size, size), "out": array(size, 4)}}, array(300, size)
    def apply_fn(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, p["w"])
        return x @ p["out"]
elif kind == "efficientnet":
    import cold_networks
    params, apply_fn, x = cold_networks.efficientnet(images=8, size=size)
else:
    params = {{"w": array(size, 24, 24), "out": array(24, 4)}}
    x = array(size, 60, 24)
    mixed = lambda p, x: jax.nn.relu(jnp.einsum("end,edf->enf", x, p["w"]))
    apply_fn = lambda p, x: mixed(p, x) @ p["out"]
method = METHODS[name]
pruned = nt.prune(params, apply_fn, x, method=method, mode=mode, on_failure="keep")
assert 0 < float(pruned.report.sparsity) <= 1
"""
SIZES = {  # of each kind, some below and some above what a core takes at once
    "depthwise": (16, 48, 120, 240, 320),
    "grouped": (16, 64, 128, 192, 256),
    "scan": (12, 24, 48, 64, 96),
    "experts": (4, 8, 16, 32, 48),
}
METHODS = ("sparsity", "nm", "sparsegpt", "nettrim")
CASES = [
    (kind, size, METHODS[i % 4] if i else "sparsity", ("parallel", "cascade")[i % 2])
    for kind, sizes in SIZES.items()
    for i, size in enumerate(sizes)
]
CASES += [("experts", 16, "layerobs", "parallel"), ("scan", 64, "layerobs", "cascade")]
# more units than run together, of which the last turn has fewer
TURNS = """
import jax.numpy as jnp, numpy as np
import nettrim_jax as nt
from nettrim_jax.methods import support

support.MEMORY = 2**22
rng = np.random.default_rng(0)
W, x = (jnp.asarray(rng.normal(size=shape), "f") for shape in ((300, 31), (900, 300)))
call = lambda w, x: x @ w
pruned = nt.prune(W, call, x, method=nt.LayerOBS(nt.Sparsity(0.9)), held_out=0.0)
assert int((pruned.params != 0).sum()) == 930
"""


def returns(code, cores, limit=LIMIT):
    """Whether a process on so many cores ends well within the limit."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < cores:
        pytest.skip(f"needs {cores} cores, there are {len(mine)}")
    command = ["taskset", "-c", ",".join(map(str, mine[:cores])), sys.executable]
    # as users run it, without flags
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "benchmarks")))
    env = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    env.pop("XLA_FLAGS", None)
    run = subprocess.run(
        [*command, "-c", code], env=env, timeout=limit, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2, 4])
@pytest.mark.parametrize("kind, size, method, mode", CASES)
def test_a_pruning_returns(kind, size, method, mode, cores):
    returns(CODE.format(kind=kind, size=size, method=method, mode=mode), cores)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_units_in_turns_return(cores):
    returns(TURNS, cores)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("method", METHODS)
def test_a_network_of_fifty_layers_returns(method, mode):
    code = CODE.format(kind="efficientnet", size=32, method=method, mode=mode)
    returns(code, 2, limit=3 * LIMIT)
