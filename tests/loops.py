"""A tiny network, optimisers and loops, which all tests of training share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nettrim_jax as nt

STEPS = 12
LAYERS = ("hidden", "output")
SIZES = {"hidden": 8 * 16, "output": 16 * 4}


def problem(dtype="float32"):
    """Params of two layers, and a loss by the number of a batch."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype("float32")

    params = {
        "hidden": normal(8, 16) / 3,
        "bias": np.zeros(16, "float32"),
        "output": normal(16, 4) / 3,
    }
    batches = jax.device_put((normal(4, 32, 8), normal(4, 32, 4)))

    def loss(params, at):
        x, y = (a[at % 4].astype(dtype) for a in batches)
        return jnp.mean((apply_fn(params, x) - y) ** 2)

    return jax.tree.map(lambda a: jnp.asarray(a, dtype), params), loss


def apply_fn(params, x):
    return jax.nn.relu(x @ params["hidden"] + params["bias"]) @ params["output"]


def layers():
    params, _ = problem()
    return nt.sites(params, apply_fn, jnp.zeros((32, 8), "float32"))


def step_of(tx, loss):
    """One step of the loop; the number of the step chooses the batch."""

    @jax.jit
    def step(params, state, at):
        grads = jax.grad(loss)(params, at)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, params, loss, steps=STEPS, start=0, state=None, step=None):
    """Params and state after each step."""
    step = step or step_of(tx, loss)
    state = tx.init(params) if state is None else state
    out = []
    for at in range(start, steps):
        params, state = step(params, state, at)
        out.append((params, state))
    return out


def once(tx, grads, params):
    """The updates and the state after the first step, compiled as one."""
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)


def zeros(mask):
    """The number of weights that are off, of each layer."""
    return [int((~mask[name]).sum()) for name in LAYERS]


def removed(schedule, steps=STEPS):
    """The numbers that a schedule of levels asks for after each step."""
    return [
        [round(schedule.level_after(t) * SIZES[name]) for name in LAYERS]
        for t in range(1, steps + 1)
    ]


def same(one, other):
    """Whether two trees agree bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    ) and jax.tree.structure(one) == jax.tree.structure(other)
