"""Layers within a ``shard_map`` are found and pruned as those of one device."""

import devices
import pytest

SCRIPT = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec as P

import nettrim_jax as nt

if hasattr(jax, "shard_map"):
    shard_map, checks = jax.shard_map, "check_vma"
else:
    from jax.experimental.shard_map import shard_map

    checks = "check_rep"

rng = np.random.default_rng(0)
shapes = {"a": (8, 8), "b": (8, 4)}
params = {name: rng.normal(size=n).astype("float32") for name, n in shapes.items()}
x = rng.normal(size=(64, 8)).astype("float32")
devices = np.asarray(jax.devices())
line = Mesh(devices, ("d",), axis_types=(AxisType.Auto,))
grid = Mesh(devices.reshape(2, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)


def mlp(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def centred(params, x):
    y = jax.nn.relu(x @ params["a"])
    return (y - jnp.mean(y, axis=0, keepdims=True)) @ params["b"], jnp.sum(y)


def gathered(params, x):  # a matrix in pieces, put together before it is used
    y = jax.nn.relu(x @ params["a"])
    mean = jax.lax.pmean(jnp.mean(y, axis=0, keepdims=True), "d")
    whole = jax.lax.all_gather(params["b"], "d", axis=0, tiled=True)
    return (y - mean) @ whole, jax.lax.psum(jnp.sum(y), "d")


def summed(params, x):  # tensor parallel
    return jax.lax.psum(jax.nn.relu(x @ params["a"]) @ params["b"], "d")


def repeated(params, x):
    def step(x, _):
        return jax.nn.relu(x @ params["a"]), None

    return jax.lax.scan(step, x, None, 2)[0] @ params["b"]


half = nt.Sparsity(0.5)
rows = P("d"), P(("d", "m"))
CASES = {
    "rows": (mlp, mlp, line, (P(), rows[0]), rows[0], True),
    "two axes": (mlp, mlp, grid, (P(), rows[1]), rows[1], True),
    "a loop": (repeated, repeated, line, (P(), rows[0]), rows[0], True),
    "gathered": (
        *(gathered, centred, line),
        *(({"a": P(), "b": P("d")}, P("d")), (P("d"), P()), False),
    ),
    "summed": (
        *(summed, mlp, line),
        *(({"a": P(None, "d"), "b": P("d", None)}, P()), P(), True),
    ),
}
for name, (inner, plain, mesh, specs, out, checked) in CASES.items():
    apply_fn = shard_map(
        inner, mesh=mesh, in_specs=specs, out_specs=out, **{checks: checked}
    )
    got = nt.prune(params, apply_fn, x, **eval(sys.argv[1]))
    want = nt.prune(params, plain, x, **eval(sys.argv[1]))
    paths = [site.path for site in got.report.sites]
    assert paths == ["a", "b"] and not got.report.skipped, (name, got.report)
    assert got.report.sites[0].response == "relu", name
    if name == "summed":  # each device has its own part of b
        assert got.report.sites[1].shape[0] == 4
        assert int(got.report.nonzeros) == int(want.report.nonzeros)
        continue
    for leaf in params:
        a, b = got.params[leaf], want.params[leaf]
        np.testing.assert_allclose(a, b, atol=1e-3, err_msg=name)
    a, b = got.report.deviation, want.report.deviation
    np.testing.assert_allclose(a, b, rtol=1e-3, err_msg=name)
if hasattr(jax, "set_mesh"):  # explicit axes, and a mesh that the user has entered
    mesh = Mesh(devices, ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        apply_fn = shard_map(mlp, in_specs=(P(), rows[0]), out_specs=rows[0])
        given = [jax.device_put(a, jax.NamedSharding(mesh, spec)) for a, spec in
                 ((params, P()), (x, P("d")))]
        got = nt.prune(given[0], apply_fn, given[1], **eval(sys.argv[1]))
    want = nt.prune(params, mlp, x, **eval(sys.argv[1]))
    for leaf in params:
        np.testing.assert_allclose(got.params[leaf], want.params[leaf], atol=1e-3)
"""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, marks=pytest.mark.slow)
        for settings in (
            "dict(method=nt.Wanda(half))",
            "dict(method=nt.Wanda(half), mode='cascade')",
            "dict(method=half)",
        )
    ],
)
def test_layers_of_a_shard_map(settings):
    devices.run(SCRIPT, settings, devices=4)


def test_one_device_is_enough_to_find_them():
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, PartitionSpec

    import nettrim_jax as nt

    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:
        from jax.experimental.shard_map import shard_map
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("d",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("d")

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": np.ones((8, 8), "float32"), "b": np.ones((8, 4), "float32")}
    whole = shard_map(
        apply_fn, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows
    )
    found = nt.sites(params, whole, np.ones((6, 8), "float32"))
    assert [(s.path, s.response, s.shape) for s in found.sites] == [
        ("a", "relu", (1, 6, 8, 8)),
        ("b", "linear", (1, 6, 8, 4)),
    ]
