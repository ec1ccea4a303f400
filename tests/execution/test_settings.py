"""JAX's settings and meshes change no answer, whatever the network and the method.

Each network has a process of its own, whose parent has none of the settings: NaN as
faults, strict promotion of dtypes and of ranks, and 64 bits; and params and rows on a
mesh, with automatic and with explicit axes.
"""

import pathlib

import devices
import pytest

TESTS = pathlib.Path(__file__).parents[1]
NETWORKS = [
    "convolutions",
    "depthwise",
    "linen-batch-norm",
    "linen-attention",
    "experts",
    "routed-experts",
    "ragged-experts",
    "scan-of-layers",
    "scan-over-time",
    "linen-lstm",
    "equinox",
    "nnx",
    "clip-forms",
    "tied-embedding",
]
SCRIPT = """
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import nettrim_jax as nt

sys.path.insert(0, sys.argv[2])
import models

METHODS = {
    "nettrim": nt.NetTrim(epsilon=0.3),
    "sparsegpt": nt.SparseGPT(nt.Sparsity(0.5)),
    "layerobs": nt.LayerOBS(nt.Sparsity(0.5)),
    "magnitude": nt.Magnitude(nt.Sparsity(0.5)),
}
SETTINGS = {
    "jax_debug_nans": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_enable_x64": True,
}
# most settings change no program, so that it need not be compiled again
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
model = models.get(sys.argv[1])


def run(method, given=(model.params, model.batch)):
    params, batch = given
    method = METHODS[method]
    pruned = nt.prune(params, model.apply_fn, batch, method=method, on_failure="warn")
    return pruned.params


def same(one, other, where):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not hasattr(a, "dtype"):
            continue
        assert a.dtype == b.dtype, where
        a, b = np.asarray(a, float), np.asarray(b, float)
        # rounding may choose another one of two weights that are about as good
        assert np.mean((a != 0) != (b != 0)) <= 0.02, where
        a, b = (np.where((a != 0) == (b != 0), c, 0) for c in (a, b))
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-3, err_msg=where)


def on_mesh(kind):
    mesh = Mesh(np.asarray(jax.devices()), ("d",), axis_types=(kind,))

    def put(tree, spec):
        def one(a):
            if not isinstance(a, jax.Array | np.ndarray):
                return a
            rows = spec if a.ndim and a.shape[0] % 2 == 0 else ()
            return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*rows)))

        return jax.tree.map(one, tree)

    params = put(model.params, ())
    for spec in (("d",), ()):  # some do not say how to divide sharded rows
        rows = put(model.batch, spec)
        try:
            jax.eval_shape(model.apply_fn, params, rows)
        except Exception:
            continue
        return params, rows
    assert model.name == "ragged-experts", "JAX has no rule for ragged_dot there"
    return None


for method in METHODS:
    plain = run(method)
    for setting, value in SETTINGS.items():
        before = getattr(jax.config, setting)
        jax.config.update(setting, value)
        jax.clear_caches()  # a program that is there is not looked at for NaN
        try:
            same(plain, run(method), f"{method}, {setting}")
        finally:
            jax.config.update(setting, before)
    jax.clear_caches()
    for kind in (AxisType.Auto, AxisType.Explicit):
        given = on_mesh(kind)
        if given is not None:
            same(plain, run(method, given), f"{method}, mesh {kind}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_setting_changes_no_answer(name, tmp_path):
    devices.run(SCRIPT, name, str(TESTS), str(tmp_path), devices=2)
