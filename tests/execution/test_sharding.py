"""Rows on several devices give what they give on one."""

import devices
import pytest
from marks import slow

SCRIPT = """
import sys

import jax
import numpy as np

import nettrim_jax as nt

devices = np.asarray(jax.devices())
assert len(devices) == 2
mesh = jax.sharding.Mesh(devices, ("rows",))
rows, every = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for axes in (("rows",), ())
)
rng = np.random.default_rng(0)
params = {
    name: rng.normal(size=size).astype("float32")
    for name, size in (("a", (8, 8)), ("b", (8, 4)))
}
x = rng.normal(size=(64, 8)).astype("float32")


def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


settings = {"method": eval("nt." + sys.argv[1]), "mode": sys.argv[2]}
one = nt.prune(params, apply_fn, x, **settings).params
both = jax.device_put(params, every), apply_fn, jax.device_put(x, rows)
both = nt.prune(*both, **settings).params
for name in params:
    np.testing.assert_allclose(both[name], one[name], atol=1e-3)
"""


@slow
@pytest.mark.parametrize(
    "method, mode",
    [
        ("Wanda(nt.Sparsity(0.5))", "parallel"),
        pytest.param("Sparsity(0.5)", "cascade", marks=pytest.mark.slow),
        pytest.param("NetTrim(0.2)", "parallel", marks=pytest.mark.slow),
    ],
)
def test_rows_on_two_devices(method, mode):
    devices.run(SCRIPT, method, mode, devices=2)
