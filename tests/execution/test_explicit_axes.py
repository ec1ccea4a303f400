"""Under explicit axes calls answer as on one device, and leaves stay where they lie.

Each group of calls has a process of its own, with four devices.
"""

import devices
import pytest

SCRIPT = """
import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import nettrim_jax as nt

axes, calls = sys.argv[1], sys.argv[2:]
enter = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh
if hasattr(jax, "reshard"):
    reshard = jax.reshard
else:
    from jax.experimental.shard import reshard
types = (AxisType.Auto if axes == "auto" else AxisType.Explicit,) * 2
mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("d", "m"), axis_types=types)
rng = np.random.default_rng(0)


def at(*spec):
    return NamedSharding(mesh, PartitionSpec(*spec))


def put(a, *spec):
    return jax.device_put(a, at(*spec))


def normal(*shape):
    return rng.normal(size=shape).astype("float32")


SPECS = {"a": (None, "m"), "bias": ("m",), "s": (), "b": ("d", None), "c": ()}
plain = {"a": normal(8, 16), "bias": normal(16), "s": 0.5 * normal(2, 16, 16)}
plain |= {"b": normal(16, 8), "c": normal(8, 4)}
mine = {name: put(a, *SPECS[name]) for name, a in plain.items()}
rows, scale = normal(256, 8), abs(normal(1, 16)) + 1
here, typed_scale = put(rows, "d", None), put(scale, None, None)
kept = {name: abs(a) > 0.3 if a.ndim > 1 else a == a for name, a in plain.items()}
kept_here = {name: put(a, *SPECS[name]) for name, a in kept.items()}


def network(typed):
    def label(a, *spec):
        return reshard(a, at(*spec)) if typed and axes != "auto" else a

    factor = typed_scale if typed else scale

    def apply_fn(params, x):
        x = jax.nn.relu(x @ params["a"] + params["bias"][None]) * factor
        x = label(x, "d", None)
        x = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, params["s"])[0]
        x = jax.lax.cond(jnp.sum(x) < 0, lambda x: 2 * x, lambda x: x, x)
        x = jax.nn.relu(x @ label(params["b"], None, None))
        return jax.checkpoint(jnp.tanh)(x @ params["c"])

    return apply_fn


class Both:
    '''Calls with everything on the mesh, and with NumPy's arrays.'''

    def __init__(self, typed):
        self.params = mine if typed else plain
        self.x, self.kept = (here, kept_here) if typed else (rows, kept)
        self.network, self.put = network(typed), put if typed else lambda a, *_: a

    def __call__(self, method, **settings):
        x = settings.pop("batch", self.x)
        return nt.prune(self.params, self.network, x, method=method, **settings)

    def loss(self, params, x):
        return jnp.mean(self.network(params, x) ** 2)

    def refit(self, **settings):
        return nt.refit(self.params, self.kept, self.network, self.x, **settings)

    def solve(self):
        Y = self.put(rows @ plain["a"], "d", "m")
        program = nt.relu_program(self.x, Y, 3.0)
        solution = nt.solve(program)
        seen = nt.history(program).gap, nt.path(program, np.array([3.0, 1.0])).epsilons
        return solution.W, solution.bias, seen[1], seen[0].shape

    def fine_tuned(self, mask=None):
        import optax

        optimizer = nt.keep_sparse(optax.sgd(0.1), self.kept if mask is None else mask)

        @jax.jit
        def step(params):
            grads = jax.tree.map(jnp.ones_like, params)
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
            return optax.apply_updates(params, updates)

        return step(jax.tree.map(jnp.asarray, self.params))

    def normalized(self):
        def chain(params, x):
            wide = at(None, None)
            b = reshard(params["b"], wide) if self.x is here else params["b"]
            h = jax.nn.relu(x @ params["a"])
            return (reshard(h, at("d", None)) if self.x is here else h) @ b

        params = {name: self.params[name] for name in ("a", "b")}
        return nt.link_normalize(params, chain, self.x)


def same_sharding(got):
    for name, leaf in mine.items():
        if name in got:
            assert got[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), name


half = nt.Sparsity(0.5)
typed, untyped = Both(True), Both(False)
ambient = contextlib.nullcontext()
if axes in ("ambient", "transformed"):
    ambient = enter(mesh)
one = [eval("call" + call, {**globals(), "call": untyped}) for call in calls]

# a leaf on several devices must not come together in the host's memory
cls = type(mine["a"])
value = cls._value


def spied(self):
    whole = self.is_fully_replicated or self.shape not in LEAVES
    assert whole or not WATCH, ("gathered", self.shape)
    return value.fget(self)


WATCH, LEAVES = False, [(8, 16), (2, 16, 16), (16, 8), (8, 4)]
cls._value = property(spied)
with ambient:
    if axes == "transformed":
        for params, x, what in ((mine, rows, "params: a"), (plain, here, "batch: the")):
            inside = jax.jit(lambda p, x: nt.prune(p, typed.network, x).params)
            try:
                inside(params, x)
            except nt.NetTrimError as error:
                assert f"{what}" in str(error) and "explicit axes" in str(error), error
            else:
                raise AssertionError("no error within jax.jit")

        def scaled(size):
            params = jax.tree.map(lambda a: size * a, plain)
            method = nt.Magnitude(half)
            return nt.prune(params, untyped.network, rows, method=method).params

        sizes = jnp.array([1.0, 2.0], "float32")
        if hasattr(jax, "set_mesh"):  # before, JAX itself could not
            got = jax.vmap(scaled)(sizes)["a"][0]
            np.testing.assert_allclose(got, scaled(1.0)["a"])
    for call, want in zip(calls, one, strict=True):
        WATCH = call.startswith(("(", ".refit"))
        got = eval("call" + call, {**globals(), "call": typed})
        WATCH = False
        if isinstance(got, nt.Pruned):
            same_sharding(got.params), same_sharding(got.mask)
            for site in jax.tree.leaves(got.report):
                assert axes == "auto" or len(site.devices()) in (1, 4)
            moved = float(got.report.deviation), float(want.report.deviation)
            np.testing.assert_allclose(*moved, rtol=0.2, atol=1e-3, err_msg=call)
            got, want = got[:2], want[:2]
            if axes != "auto":  # what comes out goes with what went in
                network(True)(got[0], here), jnp.where(got[1]["a"], mine["a"], 0)
        elif "fine_tuned" in call:
            same_sharding(got)
        elif "normalized" in call:
            same_sharding(got.params)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if call.startswith(("(half", ".refit")):  # as far as rounding allows
                assert np.count_nonzero(a) == np.count_nonzero(b), call
                continue
            assert a.dtype == b.dtype or b.dtype.itemsize == 8, call
            if a.dtype == bool:
                assert (a == b).all(), call
            else:
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3, err_msg=call)
"""

FAST = ["(nt.Magnitude(half))"]
METHODS = ("nt.Magnitude(half)", "nt.Wanda(half)", "half", "nt.NetTrim(0.2)")
MODES = ("parallel", "cascade")
CALLS = [f"({method}, mode={mode!r})" for method in METHODS for mode in MODES]
MORE = [
    "(nt.SparseGPT(half))",
    "(nt.LayerOBS(half))",
    "(nt.Random(half))",
    "(nt.Taylor(half, loss=call.loss))",
    "(nt.Wanda(nt.Sparsity(0.5, scope='network')))",
    "(nt.NetTrim(drop=1.0, metric=lambda p, x: -call.loss(p, x)), exclude='s|b|c')",
    "(nt.Magnitude(half), bound=True)",
    "(nt.Wanda(half), batch=iter([call.x, call.x]))",
    "(nt.Wanda(half), weights=call.put(np.arange(256) % 2, 'd'))",
    "(nt.Magnitude(half), within=call.kept)",
    ".solve()",
    ".fine_tuned()",
    ".fine_tuned(kept)",
    ".normalized()",
]


@pytest.mark.parametrize(
    "axes, calls",
    [
        ("ambient", FAST),
        *(
            pytest.param(axes, calls, marks=pytest.mark.slow)
            for axes, calls in [
                ("auto", CALLS),
                ("given", CALLS),
                ("ambient", CALLS[4:]),
                ("ambient", MORE),
                ("given", MORE),
                ("given", [".refit()", ".refit(mode='cascade')"]),
                ("transformed", []),
            ]
        ),
    ],
)
def test_calls_on_a_mesh(axes, calls):
    devices.run(SCRIPT, axes, *calls, devices=4)
