"""A registry of small networks: what prune must find in each, and what it must not.

Each entry is a function that makes ``(params, apply_fn, batch)``; beside it stand the
layers in order of execution and, of every leaf of two or more dimensions that is
none, a fragment of the reason. ``get`` makes an entry once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

N = 64  # samples of every batch
DIMS = (8, 10, 10, 4)  # of the plain networks


class Model(NamedTuple):
    """One network with what is to be found in it."""

    name: str
    params: Any
    apply_fn: Callable
    batch: Any
    sites: tuple[tuple[str, str, str], ...]  # path, kind, response
    shapes: tuple[tuple[int, int, int], ...] | None  # lanes, d_in, d_out
    skipped: tuple[tuple[str, str], ...]  # path, fragment of the reason


class _Entry(NamedTuple):
    make: Callable
    sites: tuple
    shapes: tuple | None
    skipped: tuple


MODELS: dict[str, _Entry] = {}


def model(name, sites, skipped=(), shapes=None):
    """Registers a function that makes ``(params, apply_fn, batch)``."""

    def register(make):
        assert name not in MODELS
        MODELS[name] = _Entry(make, tuple(sites), shapes, tuple(skipped))
        return make

    return register


@functools.cache
def get(name):
    """The model of this name, made once per process."""
    make, sites, shapes, skipped = MODELS[name]
    return Model(name, *make(), sites, shapes, skipped)


def dense(*paths):
    """Sites of dense layers; a path that starts with ``+`` has a ReLU behind it."""
    return _sites("dense", paths)


def conv(*paths):
    """Sites of convolutions; a path that starts with ``+`` has a ReLU behind it."""
    return _sites("conv", paths)


def _sites(kind, paths):
    return tuple(
        (path.removeprefix("+"), kind, "relu" if path[0] == "+" else "linear")
        for path in paths
    )


# ---- arrays without a compilation: shapes from a framework, values from NumPy


def normal(*shape, seed=0, dtype="float32"):
    """Normal numbers over the root of their first dimension."""
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    values = np.asarray(values / np.sqrt(max(shape[:1] or (1,))))
    return jax.device_put(values.astype(jnp.dtype(dtype)))


def data(*shape, seed=1):
    """A batch of normal numbers."""
    values = np.asarray(np.random.default_rng(seed).normal(size=shape))
    return jax.device_put(values.astype("float32"))


class Loader:
    """Gives its batches as often as it is asked; a list would be one batch."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def fill(shapes):
    """Values for a tree of shapes: float32, variances positive; keys and counters."""

    def value(path, leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct | jax.Array):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype))
        name = jax.tree_util.keystr(path)
        values = normal(*leaf.shape, seed=sum(name.encode()))
        return 0.5 + values**2 if "var" in name else values

    return jax.tree_util.tree_map_with_path(value, shapes)


def arrays(tree):
    """The array leaves of a tree in NumPy, PRNG keys as their bits."""
    out = []
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            out.append(np.asarray(jax.random.key_data(leaf) if is_key else leaf))
    return out


def relaxed(function):
    """Frameworks promote dtypes and ranks; what is ours must pass without."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call


def linen(module, x, **kwargs):
    """``(params, apply_fn, batch)`` of a Linen module."""
    init = relaxed(lambda key, x: module.init(key, x, **kwargs))
    params = fill(jax.eval_shape(init, jax.random.key(0), x))
    return params, relaxed(lambda params, x: module.apply(params, x, **kwargs)), x


def layers(names, d_in=8, d_out=8):
    """A dict with one matrix per name."""
    return {name: normal(d_in, d_out, seed=i) for i, name in enumerate(names)}


# ---- the ways to write a ReLU, and what only looks like one

RELUS = {
    "nn": jax.nn.relu,
    "linen": nn.relu,
    "jit": jax.jit(jax.nn.relu),
    "max": lambda z: jnp.maximum(z, 0),
    "max-left": lambda z: jnp.maximum(0, z),
    "max-array": lambda z: jnp.maximum(z, jnp.zeros_like(z)),
    "lax-max": lambda z: jax.lax.max(z, jnp.zeros((), z.dtype)),
    "clip": lambda z: jnp.clip(z, 0),
    "where": lambda z: jnp.where(z > 0, z, 0),
    "where-ge": lambda z: jnp.where(z >= 0, z, 0),
    "where-le": lambda z: jnp.where(z <= 0, 0, z),
    "where-lt": lambda z: jnp.where(z < 0, 0, z),
    "where-left": lambda z: jnp.where(0 < z, z, 0),
    "where-array": lambda z: jnp.where(z > 0, z, jnp.zeros_like(z)),
    "times": lambda z: z * (z > 0),
    "times-left": lambda z: (z > 0) * z,
    "times-cast": lambda z: z * (z > 0).astype(z.dtype),
    "squared": lambda z: jnp.square(jax.nn.relu(z)),
    "negated": lambda z: jax.nn.relu(-z),
    "from-one": lambda z: jax.nn.relu(1 - z),
    "twice": lambda z: jax.nn.relu(jax.nn.relu(z)),
    "named": lambda z: jax.nn.relu(checkpoint_name(z, "hidden")),
    "pooled": lambda z: jax.nn.relu(jnp.max(z, 0)),
    "pooled-units": lambda z: jax.nn.relu(jnp.max(z.reshape(-1, 2, 4), 1).ravel()),
    "two-readers": lambda z: jnp.maximum(z, 0) + jnp.sin(jnp.maximum(z, 0)),
    "read-after": lambda z: (lambda a: a * jnp.mean(a))(jax.nn.relu(z)),
    "reshaped": lambda z: jax.nn.relu(z.reshape(4, -1, 2, 4)),
    "transposed": lambda z: jax.nn.relu(z.T),
    "scaled": lambda z: jax.nn.relu(z * jnp.linspace(-1, 1, 8, dtype=z.dtype)),
    "divided": lambda z: jax.nn.relu(z / jnp.arange(1, 9, dtype=z.dtype)),
}
NO_RELUS = {
    "nothing": lambda z: z,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "softmax": jax.nn.softmax,
    "leaky": jax.nn.leaky_relu,
    "leaky-max": lambda z: jnp.maximum(z, 0.1 * z),
    "abs": lambda z: jnp.maximum(z, -z),
    "above-one": lambda z: jnp.where(z > 1, z, 0),
    "else-one": lambda z: jnp.where(z > 0, z, 1),
    "step": lambda z: jnp.where(z > 0, 1.0, 0.0),
    "hard-swish": jax.nn.hard_swish,
    "clip-array": lambda z: jnp.clip(z, -jnp.arange(8.0), jnp.arange(1, 9.0)),
    "clip-and-read": lambda z: jnp.clip(z, -1, 1) + jnp.sin(z),
    "never": lambda z: jnp.minimum(jnp.maximum(z, 1), 0),
    "other-array": lambda z: jnp.maximum(z, jnp.sin(jnp.arange(8.0, dtype="float32"))),
    "added-again": lambda z: jax.nn.relu(z) + z,
    "summed-too": lambda z: jax.nn.relu(z) + jnp.sum(z),
    "gated": lambda z: jax.nn.relu(z * z),
    "normalised": lambda z: jax.nn.relu(z - jnp.mean(z, 1, keepdims=True)),
    "per-row": lambda z: jax.nn.relu(
        z * jnp.arange(1.0, N + 1, dtype="float32")[:, None]
    ),
    "held-back": lambda z: jax.nn.relu(
        jax.lax.optimization_barrier((jnp.ones(()), z))[1]
    ),
    "half": lambda z: jnp.concatenate([jax.nn.relu(z[:, :4]), z[:, 4:]], 1),
    "pooled-and-read": lambda z: jax.nn.relu(jnp.max(z, 0)) + jnp.max(z, 0),
    "pooled-mean": lambda z: jax.nn.relu(jnp.mean(z, 0)),
}
INF = float("inf")
CLIPS = {  # with the limits
    "relu6": (jax.nn.relu6, 0, 6),
    "min-max": (lambda z: jnp.minimum(jnp.maximum(z, 0), 6), 0, 6),
    "max-min": (lambda z: jnp.maximum(jnp.minimum(z, 2), -1), -1, 2),
    "clip": (lambda z: jnp.clip(z, 0, 1), 0, 1),
    "clamp": (lambda z: jax.lax.clamp(jnp.float32(0), z, jnp.float32(1)), 0, 1),
    "hard-tanh": (jax.nn.hard_tanh, -1, 1),
    "hard-sigmoid": (jax.nn.hard_sigmoid, 0, 6),
    "where-both": (lambda z: jnp.where(z < -1, -1, jnp.where(z > 2, 2, z)), -1, 2),
    "above": (lambda z: jnp.maximum(z, 0.5), 0.5, INF),
    "below": (lambda z: jnp.minimum(z, 0), -INF, 0),
    "where-above": (lambda z: jnp.where(z > 1, z, 1), 1, INF),
    "negative-part": (lambda z: jnp.where(z > 0, 0, z), -INF, 0),
    "negative-times": (lambda z: z * (z < 0), -INF, 0),
    "pooled": (lambda z: jax.nn.relu6(jnp.max(z.reshape(-1, 2, 8), 1)), 0, 6),
    "array": (lambda z: jnp.clip(z, jnp.zeros_like(z), jnp.full_like(z, 6)), 0, 6),
    "read-after": (lambda z: (lambda a: a * jnp.sin(a))(jnp.clip(z, -1, 1)), -1, 1),
    "relu-first": (lambda z: jax.nn.relu6(jax.nn.relu(z)), 0, 6),
    "root": (lambda z: jnp.minimum(z, jnp.sqrt(jnp.float32(4))), -INF, 2),
}


def side_by_side(functions):
    """One matrix per function, all of them over the same batch."""

    @relaxed
    def apply_fn(params, x):
        return {name: f(x @ params[name]) for name, f in functions.items()}

    return layers(functions), apply_fn, data(N, 8)


@model("relu-forms", dense(*("+" + name for name in RELUS)))
def _():
    return side_by_side(RELUS)


@model("clip-forms", tuple((name, "dense", "clip") for name in CLIPS))
def _():
    return side_by_side({name: clip for name, (clip, _, _) in CLIPS.items()})


@model("not-relu", dense(*NO_RELUS))
def _():
    return side_by_side(NO_RELUS)


@model(
    "relu-of-more",
    dense("+residual", "+gated", "+after", "early", "returned", "+row-shift", "mixed"),
)
def _():
    names = "residual gated after early returned row-shift mixed".split()

    def apply_fn(params, x):
        z = {name: x @ params[name] for name in names}
        residual = jax.nn.relu(z["residual"] + x)
        gated = jax.nn.relu(z["gated"] * params["s"][None, :] + 1)
        bias = params["b"][None, :]
        after = jax.nn.relu(z["after"] + bias) + bias
        early = jax.nn.relu(z["early"] + bias) + z["early"]
        shift = jax.nn.relu(z["row-shift"] + jnp.sum(x, axis=1, keepdims=True))
        mixed = jax.nn.relu(z["mixed"] * jnp.sum(x, axis=1, keepdims=True))
        return (
            residual,
            gated,
            after,
            early,
            z["returned"],
            shift,
            mixed,
            (jax.nn.relu(z["returned"])),
        )

    scale = jnp.asarray([1, -1, 0, 2, -0.5, 0, 1, 1], jnp.float32)
    params = {**layers(names), "s": scale, "b": normal(8)}
    return params, apply_fn, data(N, 8)


# ---- plain functions


def mlp(params, x, relu=jax.nn.relu):
    """``DIMS`` with a ReLU between the layers; params: ``{"0": {"w", "b"}, ...}``."""
    for i in range(len(params)):
        x = x @ params[f"{i}"]["w"] + params[f"{i}"]["b"][None, :]
        x = relu(x) if i < len(params) - 1 else x
    return x


def mlp_params(dims=DIMS, seed=0):
    """Params of :func:`mlp`."""
    return {
        f"{i}": {"w": normal(a, b, seed=seed + i), "b": 0.3 * normal(b, seed=seed + i)}
        for i, (a, b) in enumerate(zip(dims[:-1], dims[1:], strict=True))
    }


@model(
    "plain", dense("+0/w", "+1/w", "2/w"), shapes=((1, 8, 10), (1, 10, 10), (1, 10, 4))
)
def _():
    return mlp_params(), mlp, data(N, 8)


@model("square", dense("+0/w", "+1/w", "2/w"), shapes=((1, 8, 8),) * 3)
def _():  # one shape, one compilation: most tests of prune run on it
    # inputs as of images: not negative, of unequal size, many of them zero
    x = jnp.maximum(data(N, 8) + 0.3, 0) * jnp.exp(normal(1, 8, seed=2))
    return mlp_params((8, 8, 8, 8)), mlp, x


@model("list-of-pairs", dense("+0/0", "1/0"))
def _():
    def apply_fn(params, x):
        (w0, b0), (w1, b1) = params
        return jax.nn.relu(x @ w0 + b0[None, :]) @ w1 + b1[None, :]

    params = [(normal(8, 10), normal(10)), (normal(10, 4), normal(4))]
    return params, apply_fn, data(N, 8)


@model("single-array", dense("+params"))
def _():
    return normal(8, 10), lambda w, x: jax.nn.relu(x @ w), data(N, 8)


@model("batch-of-many", dense("+w", "v"))
def _():
    def apply_fn(params, batch):
        return jax.nn.relu(batch["x"] @ params["w"]) + batch["more"][0] @ params["v"]

    batch = {"x": data(N, 8), "more": (data(N, 6, seed=2), jnp.arange(N))}
    return {"w": normal(8, 10), "v": normal(6, 10)}, apply_fn, batch


@model("float64", dense("+w"))
def _():
    params = {"w": normal(8, 10, dtype="float64")}
    apply_fn = lambda params, x: jax.nn.relu(x @ params["w"])  # noqa: E731
    return params, apply_fn, data(N, 8).astype("float64")


@model("bfloat16", dense("+0/w", "+1/w", "2/w"))
def _():
    params = jax.tree.map(lambda a: a.astype("bfloat16"), mlp_params((8, 8, 8, 8)))
    return params, mlp, data(N, 8).astype("bfloat16")


@model("cast", dense("+w", "v"))
def _():
    def apply_fn(params, x):
        z = x.astype("bfloat16") @ params["w"].astype("bfloat16")
        return jax.nn.relu(z.astype("float32")) @ params["v"].astype("float32")

    return (
        {"w": normal(8, 10), "v": normal(10, 4, dtype="bfloat16")},
        apply_fn,
        data(N, 8),
    )


@model("integer-leaf", dense("+w"), [("table", "dtype is int32")])
def _():
    def apply_fn(params, x):
        x = x + params["table"].astype("float32")
        return jax.nn.relu(x @ params["w"]) * params["step"].astype("float32")

    table = jnp.asarray(np.arange(N * 8).reshape(N, 8) % 5, jnp.int32)
    params = {"w": normal(8, 10), "table": table, "step": jnp.int32(3)}
    return params, apply_fn, data(N, 8)


@model("closed-over", dense("+w"))
def _():
    first = normal(8, 8, seed=7)
    apply_fn = lambda params, x: jax.nn.relu((x @ first) @ params["w"])  # noqa: E731
    return {"w": normal(8, 10)}, apply_fn, data(N, 8)


# ---- index maps on the way to the operation


@model(
    "moved",
    dense("+transposed", "+reshaped", "flipped", "+strided", "+squeezed", "+left")
    + dense("+swapped", "+reversed"),
    shapes=(
        *((1, 8, 10), (1, 8, 10), (1, 8, 10), (1, 8, 5), (1, 8, 10), (1, 8, 10)),
        *((1, 8, 10), (1, 8, 10)),
    ),
)
def _():
    params = {
        "transposed": normal(10, 8),
        "reshaped": normal(4, 20),
        "flipped": normal(8, 10, seed=1),
        "strided": normal(8, 10, seed=2),
        "squeezed": normal(1, 8, 1, 10),
        "left": normal(10, 8, seed=3),
        "swapped": normal(2, 4, 10),
        "reversed": normal(8, 10, seed=4),
    }

    def apply_fn(p, x):
        relu = jax.nn.relu
        return (
            relu(x @ p["transposed"].T),
            relu(x @ p["reshaped"].reshape(8, 10)),
            x @ jnp.flip(p["flipped"], 0),
            relu(x @ jax.lax.slice_in_dim(p["strided"], 0, 10, 2, axis=1)),
            relu(x @ jnp.squeeze(p["squeezed"])),
            relu(p["left"] @ x.T),
            relu(x @ jnp.swapaxes(p["swapped"], 0, 1).reshape(8, 10)),
            relu(x @ jax.lax.rev(p["reversed"], (0, 1))),
        )

    return params, apply_fn, data(N, 8)


@model(
    "fused-qkv",
    dense("qkv", "qkv", "qkv", "+out"),
    shapes=((1, 8, 8), (1, 8, 8), (1, 8, 8), (1, 8, 8)),
)
def _():
    def apply_fn(params, x):
        q, k = x @ params["qkv"][:, :8], x @ params["qkv"][:, 8:16]
        v = x @ params["qkv"][:, 16:]
        scores = jnp.einsum("btd,bsd->bts", q, k)
        return jax.nn.relu(jax.nn.softmax(scores) @ v @ params["out"])

    params = {"qkv": normal(8, 24), "out": normal(8, 8)}
    return params, apply_fn, data(N // 4, 4, 8)


@model("split", dense("w", "w", "+w"), shapes=((1, 8, 4),) * 3)
def _():
    def apply_fn(params, x):
        a, b, c = jnp.split(params["w"], 3, axis=1)
        return (x @ a) * jnp.tanh(x @ b) + jax.nn.relu(x @ c)

    return {"w": normal(8, 12)}, apply_fn, data(N, 8)


@model("fused-product", dense("w"), shapes=((1, 8, 12),))
def _():
    def apply_fn(params, x):
        q, k, v = jnp.split(x @ params["w"], 3, axis=-1)
        return jax.nn.relu(q) * jnp.tanh(k) + v

    return {"w": normal(8, 12)}, apply_fn, data(N, 8)


@model("vector", dense("v"), shapes=((1, 8, 1),))
def _():
    return {"v": normal(8)}, lambda p, x: x @ p["v"], data(N, 8)


# ---- several matrices in one leaf


@model("experts", dense("+up", "down"), shapes=((1, 8, 30), (3, 10, 4)))
def _():
    def apply_fn(params, x):
        h = jax.nn.relu(jnp.einsum("bd,edf->bef", x, params["up"]))
        return jnp.einsum("bef,efo->beo", h, params["down"])

    params = {"up": normal(3, 8, 10) * 2, "down": normal(3, 10, 4)}
    return params, apply_fn, data(N, 8)


@model(
    "ragged-experts",
    dense("router", "+up", "down"),
    [("bias", "looked up by index")],
    shapes=((1, 8, 3), (3, 8, 10), (3, 10, 4)),
)
def _():
    def apply_fn(params, x):
        expert = jnp.argmax(x @ params["router"], axis=1)
        order = jnp.argsort(expert)
        sizes = jnp.sum(jax.nn.one_hot(expert, 3, dtype="int32"), axis=0)
        up = jax.lax.ragged_dot(x[order], params["up"], sizes)
        h = jax.nn.relu(up + params["bias"][expert[order]])
        y = jax.lax.ragged_dot(h, params["down"], sizes)
        return jnp.zeros_like(y).at[order].set(y)

    params = {
        "router": normal(8, 3),
        "up": normal(3, 8, 10) * 2,
        "bias": normal(3, 10),
        "down": normal(3, 10, 4),
    }
    return params, apply_fn, data(2 * N, 8)


JOINED = ("+tall", "+wide", "+both", "+rolled", "+stack", "back")


@model(
    "joined-to-constants",
    dense(*JOINED),
    [],
    shapes=((1, 5, 10), (1, 8, 7), (1, 5, 7), (1, 8, 10), (3, 6, 8), (1, 10, 6)),
)
def _():
    ones = jnp.linspace(-1, 1, 80, dtype="float32").reshape(8, 10)

    def apply_fn(p, x):
        tall = jnp.concatenate([ones[:2], p["tall"], ones[7:]])
        wide = jnp.pad(p["wide"], ((0, 0), (1, 2)))
        both = jnp.concatenate([jnp.pad(p["both"], ((1, 2), (0, 0))), ones[:, :3]], 1)
        out = [x @ tall + p["b"], x @ wide, x @ both + p["c"]]
        out.append(x @ jnp.roll(p["rolled"], 3, axis=0))
        out = [jax.nn.relu(z) for z in out]

        def step(h, w):
            return jax.nn.relu(h @ jnp.concatenate([w, ones[:2, :8]])), None

        h, _ = jax.lax.scan(step, x, p["stack"])
        return out, h, sum(out) @ jnp.pad(p["back"].T, ((0, 3), (0, 0))).T

    params = {
        "tall": normal(5, 10),
        "wide": normal(8, 7),
        "both": normal(5, 7),
        "rolled": normal(8, 10),
        "stack": normal(3, 6, 8),
        "back": normal(10, 6),
        "b": normal(10, seed=1),
        "c": normal(10, seed=2),
    }
    return params, relaxed(apply_fn), data(N, 8)


@model("routed-experts", dense("+up"), shapes=((3, 8, 10),))
def _():
    def apply_fn(params, x):
        return jax.nn.relu(jnp.einsum("ebd,edf->ebf", x, params["up"]))

    return {"up": normal(3, 8, 10)}, apply_fn, data(3, N, 8)


@model(
    "ensemble",
    dense("+0/w", "1/w"),
    [("0/b", "added"), ("1/b", "added")],
    shapes=((1, 8, 30), (3, 10, 4)),
)
def _():
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(mlp_params((8, 10, 4), seed=10 * i) for i in range(3)),
    )
    return params, lambda p, x: jax.vmap(mlp, (0, None))(p, x), data(N, 8)


@model(
    "scan-of-layers",
    dense("+w", "out"),
    [("b", "added"), ("scale", "multiplied entry by entry")],
    shapes=((3, 8, 8), (1, 8, 4)),
)
def _():
    def apply_fn(params, x):
        def layer(x, step):
            w, scale, b = step
            return jax.nn.relu((x @ w) * scale[None, :] + b[None, :]), None

        steps = params["w"], params["scale"], params["b"]
        return jax.lax.scan(layer, x, steps)[0] @ params["out"]

    params = {"w": 2 * normal(3, 8, 8), "b": normal(3, 8), "out": normal(8, 4)}
    return {**params, "scale": normal(3, 8, seed=1)}, apply_fn, data(N, 8)


@model("scan-backwards", dense("+w"), shapes=((3, 8, 8),))
def _():
    def apply_fn(params, x):
        layer = lambda x, w: (jax.nn.relu(x @ w), jnp.sum(x))  # noqa: E731
        return jax.lax.scan(layer, x, params["w"], reverse=True)

    return {"w": 2 * normal(3, 8, 8)}, apply_fn, data(N, 8)


@model(
    "scan-over-time", dense("x", "h", "out"), shapes=((1, 8, 8), (1, 8, 8), (1, 8, 4))
)
def _():
    def apply_fn(params, xs):
        def cell(h, x):
            return jnp.tanh(x @ params["x"] + h @ params["h"]), h @ params["out"]

        return jax.lax.scan(cell, jnp.zeros((N // 4, 8), "float32"), xs)[1]

    return (
        {"x": normal(8, 8), "h": normal(8, 8, seed=1), "out": normal(8, 4)},
        apply_fn,
        data(4, N // 4, 8),
    )


@model("loop-of-known-length", dense("+w"), shapes=((1, 8, 8),))
def _():
    def apply_fn(params, x):
        return jax.lax.fori_loop(
            0, 3, lambda i, x: jax.nn.relu(x @ params["w"] + 0.1), x
        )

    return {"w": normal(8, 8)}, apply_fn, data(N, 8)


@model("scale-of-its-own-per-step", dense("w", "out"), shapes=((1, 8, 8), (1, 8, 4)))
def _():
    def apply_fn(params, x):
        def step(x, scale):
            return jax.nn.relu((x @ params["w"]) * scale + 0.1), None

        scales = jnp.asarray([1, -1, 0.5], jnp.float32)
        return jax.lax.scan(step, x, scales)[0] @ params["out"]

    return {"w": normal(8, 8), "out": normal(8, 4)}, apply_fn, data(N, 8)


@model("scan-in-scan", dense("+w"), shapes=((6, 8, 8),))
def _():
    def apply_fn(params, x):
        def inner(x, w):
            return jax.nn.relu(x @ w), None

        def outer(x, w):
            return jax.lax.scan(inner, x, w)[0] + 1, None

        return jax.lax.scan(outer, x, params["w"])[0]

    return {"w": 2 * normal(2, 3, 8, 8)}, apply_fn, data(N, 8)


@model("stack-by-number", dense("+w", "+w", "w"), shapes=((1, 8, 8),) * 3)
def _():
    def apply_fn(params, x):
        # params["w"][0] is a dynamic slice in older versions of JAX
        w = [jax.lax.index_in_dim(params["w"], i, keepdims=False) for i in range(3)]
        return jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2]

    return {"w": normal(3, 8, 8)}, apply_fn, data(N, 8)


@model("sum-of-two", dense("+w", "+v"))
def _():
    def apply_fn(params, x):
        return jax.nn.relu(x @ params["w"] + jnp.tanh(x) @ params["v"])

    return {"w": normal(8, 10), "v": normal(8, 10, seed=1)}, apply_fn, data(N, 8)


# ---- wrappers


@jax.custom_jvp
def _custom_relu(z):
    return jnp.maximum(z, 0)


@_custom_relu.defjvp
def _(primals, tangents):
    return _custom_relu(primals[0]), tangents[0]


@jax.custom_vjp
def _custom_dense(x, w):
    return x @ w


_custom_dense.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g)
)


@model("wrapped", dense("+jit", "+checkpoint", "+jvp", "+vjp", "+vmap", "grad"))
def _():
    names = "jit checkpoint jvp vjp vmap grad".split()

    def dense_relu(w, x):
        return jax.nn.relu(x @ w)

    def apply_fn(params, x):
        x = jax.jit(dense_relu)(params["jit"], x)
        x = jax.checkpoint(dense_relu)(params["checkpoint"], x)
        x = _custom_relu(x @ params["jvp"])
        x = jax.nn.relu(_custom_dense(x, params["vjp"]))
        x = jax.vmap(dense_relu, (None, 0))(params["vmap"], x)
        return jax.jit(jax.jit(lambda w, x: jnp.tanh(x @ w)))(params["grad"], x)

    return layers(names), apply_fn, data(N, 8)


@model("switch", dense("+both", "other", "+one"))
def _():
    def apply_fn(params, x):
        x = jax.nn.relu(x @ params["both"])
        return jax.lax.cond(
            jnp.sum(x) > 0,
            lambda x: jax.nn.relu(x @ params["one"]) @ params["other"],
            lambda x: x @ params["other"],
            x,
        )

    return layers(("both", "one", "other")), apply_fn, data(N, 8)


# ---- convolutions


def convolve(x, w, **kwargs):
    """Channels last, whatever the number of axes."""
    space = "DHW"[4 - x.ndim + 1 :] if x.ndim < 5 else "DHW"
    layout = ("N" + space + "C", space + "IO", "N" + space + "C")
    kwargs = {"window_strides": (1,) * len(space), "padding": "SAME"} | kwargs
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=layout, **kwargs)


@model(
    "convolutions",
    conv("+strided", "+padded", "+dilated", "+channels-first", "+shifted"),
    [("b", "added")],
    shapes=((1, 18, 4), (1, 18, 4), (1, 18, 4), (1, 18, 4), (1, 12, 4)),
)
def _():
    def apply_fn(p, x):
        relu = jax.nn.relu
        first = jnp.moveaxis(x, -1, 1)
        return (
            relu(convolve(x, p["strided"], window_strides=(2, 3))),
            relu(convolve(x, p["padded"], padding=((2, 1), (0, 3))) + p["b"]),
            relu(convolve(x, p["dilated"], rhs_dilation=(2, 1), padding="VALID")),
            relu(jax.lax.conv(first, p["channels-first"], (1, 1), "SAME")),
            relu(convolve(x, p["shifted"], padding=((-1, 2), (1, 0)))),
        )

    params = {
        "strided": normal(3, 3, 2, 4),
        "padded": normal(3, 3, 2, 4, seed=1),
        "b": normal(1, 1, 1, 4),
        "dilated": normal(3, 3, 2, 4, seed=2),
        "channels-first": normal(4, 2, 3, 3),
        "shifted": normal(2, 3, 2, 4),
    }
    return params, relaxed(apply_fn), data(4, 6, 5, 2)


@model("conv-1d-3d", conv("+one", "+three"), shapes=((1, 6, 4), (1, 24, 4)))
def _():
    def apply_fn(p, batch):
        one = convolve(batch[0], p["one"], window_strides=(2,))
        return jax.nn.relu(one), jax.nn.relu(convolve(batch[1], p["three"]))

    params = {"one": normal(3, 2, 4), "three": normal(2, 2, 2, 3, 4)}
    return params, apply_fn, (data(8, 12, 2), data(4, 3, 3, 3, 3))


@model("grouped", conv("+w"), shapes=((2, 18, 3),))
def _():
    def apply_fn(params, x):
        return jax.nn.relu(convolve(x, params["w"], feature_group_count=2))

    return {"w": normal(3, 3, 2, 6)}, apply_fn, data(4, 5, 5, 4)


@model("depthwise", conv("+w", "v"), shapes=((4, 9, 2), (8, 9, 1)))
def _():
    def apply_fn(params, x):
        x = jax.nn.relu(convolve(x, params["w"], feature_group_count=4))
        return convolve(x, params["v"], feature_group_count=8, padding="VALID")

    return (
        {"w": normal(3, 3, 1, 8), "v": normal(3, 3, 1, 8)},
        apply_fn,
        (data(4, 5, 5, 4)),
    )


@model("ensemble-of-convolutions", conv("+w"), shapes=((3, 18, 4),))
def _():
    def apply_fn(params, x):
        return jax.nn.relu(jax.vmap(convolve)(x, params["w"]))

    return {"w": normal(3, 3, 3, 2, 4)}, apply_fn, data(3, 4, 5, 5, 2)


@model("linen-cnn", conv("+params/Conv_0/kernel") + dense("params/Dense_0/kernel"))
def _():
    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
            x = nn.avg_pool(nn.relu(x), (2, 2), strides=(2, 2))
            return nn.Dense(4)(x.reshape(x.shape[0], -1))

    return linen(CNN(), data(8, 6, 6, 2))


@model("linen-transposed", conv("+params/ConvTranspose_0/kernel"), shapes=((1, 12, 4),))
def _():
    class Up(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.ConvTranspose(4, (2, 3), strides=(2, 2))(x))

    return linen(Up(), data(4, 4, 4, 2))


# ---- Linen


class MLP(nn.Module):
    """``DIMS`` with a ReLU between the layers."""

    use_bias: bool = True
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        make = nn.remat(nn.Dense) if self.remat else nn.Dense
        for i, width in enumerate(DIMS[1:]):
            name = f"Dense_{i}"
            x = make(width, use_bias=self.use_bias, dtype=self.dtype, name=name)(x)
            x = nn.relu(x) if i < 2 else x
        return x


LINEN = tuple(f"{'+' * (i < 2)}params/Dense_{i}/kernel" for i in range(3))


@model("linen", dense(*LINEN))
def _():
    return linen(MLP(), data(N, 8))


@model("linen-no-bias", dense(*LINEN))
def _():
    return linen(MLP(use_bias=False), data(N, 8))


@model("linen-remat", dense(*LINEN))
def _():
    return linen(MLP(remat=True), data(N, 8))


@model("linen-bfloat16", dense(*LINEN))
def _():
    return linen(MLP(dtype=jnp.bfloat16), data(N, 8))


@model(
    "linen-batch-norm",
    dense(*(f"{'+' * (i < 2)}params/Dense_{i}/kernel" for i in range(3))),
)
def _():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(2):
                x = nn.Dense(8, name=f"Dense_{i}")(x)
                x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            return nn.Dense(8, name="Dense_2")(x)

    params, apply_fn, x = linen(Norm(), data(N, 8))
    scale = jnp.asarray([1, -1, 0, 0.5, 2, -0.3, 1, 0], jnp.float32)
    params["params"]["BatchNorm_0"]["scale"] = scale
    return params, apply_fn, x


@model(
    "linen-residual",
    dense("+params/Dense_0/kernel", "+params/Dense_1/kernel", "params/Dense_2/kernel"),
)
def _():
    class Residual(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Dense(10)(x))
            h = nn.Dense(8)(h)
            return nn.Dense(4)(nn.relu(x + h))

    return linen(Residual(), data(N, 8))


@model(
    "linen-layer-norm",
    dense("params/Dense_0/kernel", "+params/Dense_1/kernel"),
)
def _():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.LayerNorm()(nn.Dense(10)(x)))
            return nn.relu(nn.Dense(4)(x))

    return linen(Norm(), data(N, 8))


@model(
    "linen-attention",
    dense(
        *(f"params/attend/{name}/kernel" for name in ("query", "key", "value", "out")),
        "+params/DenseGeneral_0/kernel",
        "params/DenseGeneral_1/kernel",
    ),
    [
        ("params/DenseGeneral_0/bias", "added"),
        *(
            (f"params/attend/{name}/bias", "added")
            for name in ("key", "query", "value")
        ),
    ],
    shapes=((1, 8, 8),) * 4 + ((1, 8, 6), (1, 6, 8)),
)
def _():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + nn.MultiHeadDotProductAttention(
                num_heads=2, deterministic=True, name="attend"
            )(x)
            h = nn.relu(nn.DenseGeneral((2, 3))(x))
            return x + nn.DenseGeneral(8, axis=(-2, -1))(h)

    return linen(Block(), data(N // 4, 4, 8))


@model(
    "linen-scan",
    dense("+params/layers/Dense_0/kernel", "params/Dense_0/kernel"),
    [("params/layers/Dense_0/bias", "added")],
    shapes=((3, 8, 8), (1, 8, 4)),
)
def _():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(8)(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.scan(
                nn.remat(Layer),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return nn.Dense(4)(layer(name="layers")(x, None)[0])

    return linen(Stack(), data(N, 8))


@model("linen-partitioned", dense("+params/Dense_0/kernel/value"))
def _():
    class Sharded(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return nn.relu(nn.Dense(10, kernel_init=init)(x))

    return linen(Sharded(), data(N, 8))


GATES = [f"params/cell/{kind}{gate}/kernel" for gate in "ifgo" for kind in "ih"]


@model("linen-lstm", dense(*GATES), shapes=((1, 8, 8),) * 8)
def _():
    class LSTM(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.RNN(nn.LSTMCell(8, name="cell"))(x)

    return linen(LSTM(), data(N // 4, 4, 8))


@model(
    "linen-embedding",
    dense("+params/Dense_0/kernel"),
    [("params/Embed_0/embedding", "looked up")],
)
def _():
    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return nn.relu(nn.Dense(10)(nn.Embed(12, 8)(ids)))

    ids = np.random.default_rng(0).integers(0, 12, (N // 4, 4))
    return linen(Embedded(), jnp.asarray(ids, jnp.int32))


@model(
    "linen-weight-norm",
    dense("params/out/kernel"),
    [("params/normed/kernel", "multiplied entry by entry")],
)
def _():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.WeightNorm(nn.Dense(10, name="normed"))(x)
            return nn.Dense(4, name="out")(nn.relu(x))

    return linen(Normed(), data(N, 8))


# ---- other frameworks


@model("nnx", dense("+first/kernel/value", "second/kernel/value"))
def _():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 10, rngs=rngs)
            self.norm = nnx.BatchNorm(10, use_running_average=True, rngs=rngs)
            self.second = nnx.Linear(10, 4, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.norm(self.first(x))))

    net = relaxed(nnx.eval_shape)(lambda: Net(nnx.Rngs(0)))
    graph, state = nnx.split(net)
    apply_fn = relaxed(lambda state, x: nnx.merge(graph, state)(x))
    return fill(state), apply_fn, data(N, 8)


@model("nnx-with-a-key", dense("+linear/kernel/value"))
def _():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(8, 10, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.dropout(self.linear(x)))

    net = relaxed(nnx.eval_shape)(lambda: Net(nnx.Rngs(0)))
    net.eval()
    graph, state = nnx.split(net)
    apply_fn = relaxed(lambda state, x: nnx.merge(graph, state)(x))
    return fill(state), apply_fn, data(N, 8)


@model("equinox", dense("+layers/0/weight", "+layers/1/weight", "layers/2/weight"))
def _():
    make = relaxed(eqx.filter_eval_shape)
    net = make(eqx.nn.MLP, 8, 4, 10, 2, key=jax.random.key(0))
    return fill(net), relaxed(lambda net, x: jax.vmap(net)(x)), data(N, 8)


@model("equinox-conv", conv("+0/weight") + dense("2/weight"), [("0/bias", "added")])
def _():
    def make(key):
        return [
            eqx.nn.Conv2d(2, 4, 3, key=key),
            jax.nn.relu,
            eqx.nn.Linear(64, 4, key=key),
        ]

    net = relaxed(eqx.filter_eval_shape)(make, jax.random.key(0))

    def one(net, x):
        return net[2](net[1](net[0](x)).ravel())

    return (
        fill(net),
        relaxed(lambda net, x: jax.vmap(one, (None, 0))(net, x)),
        (data(8, 2, 6, 6)),
    )


@model("haiku", dense("+mlp/~/linear_0/w", "mlp/~/linear_1/w"))
def _():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([10, 4])(x)))
    x = data(N, 8)
    shapes = jax.eval_shape(relaxed(net.init), jax.random.key(0), x)
    return fill(shapes), relaxed(net.apply), x


# ---- what is left alone, with its reason


@model(
    "left-alone",
    dense("fixed", "taken", "tied", "twice"),
    [
        ("added", "added to other values"),
        ("broadcast", "repeated within one operation"),
        ("gated", "multiplied entry by entry"),
        ("image", "image, not kernel"),
        ("indexed", "dynamic_slice"),
        ("joined", "concatenate"),
        ("looked-up", "looked up"),
        ("lora/a", "multiplied with another leaf"),
        ("lora/b", "multiplied with another leaf"),
        ("lora/w", "combined with lora/a, lora/b"),
        ("masked/m", "combined with masked/w"),
        ("masked/w", "combined with masked/m"),
        ("normed", "multiplied entry by entry"),
        ("outer", "outer product"),
        ("overlapping", "tied weights"),
        ("product/a", "multiplied with another leaf"),
        ("product/b", "multiplied with another leaf"),
        ("ragged", "ragged product"),
        ("returned", "returned by apply_fn"),
        ("rounded", "convert_element_type"),
        ("scattered", "scattered"),
        ("summed", "not linear"),
        ("transposed", "tied weights"),
        ("unused", "does not use it"),
        ("while", "while loop"),
    ],
)
def _():
    names = (
        "added fixed looked-up normed overlapping returned summed taken tied".split()
    )
    params = layers([*names, "gated", "twice", "transposed", "unused", "while"])
    params["lora"] = layers(("a", "b", "w"))
    params["masked"] = layers(("m", "w"))
    params["product"] = layers(("a", "b"))
    params |= layers("broadcast image indexed joined outer".split())
    params |= layers("ragged rounded scattered".split())
    params["added"] = normal(N, 8)

    @relaxed
    def apply_fn(p, x):
        ids = (jnp.abs(x[:, 0]) * 4).astype("int32") % 8
        lora, masked, product = p["lora"], p["masked"], p["product"]
        normed = p["normed"] / jnp.linalg.norm(p["normed"], axis=0, keepdims=True)
        fixed = p["fixed"] * jnp.asarray(np.tri(8), "float32")
        loop = jax.lax.while_loop(
            lambda z: jnp.max(jnp.abs(z)) > 1,
            lambda z: 0.5 * jnp.tanh(z @ p["while"]),
            x,
        )
        return (
            x + p["added"],
            jnp.einsum("ni,nio->no", x, jnp.broadcast_to(p["broadcast"], (N, 8, 8))),
            convolve(p["image"].reshape(2, 4, 8), x[:8, :2].reshape(1, 8, 2)),
            jax.lax.fori_loop(
                0, 8, lambda i, z: z + jnp.outer(z[:, 0], p["indexed"][i]), x
            ),
            x @ jnp.concatenate([p["joined"], x[:8]], axis=1),
            jnp.einsum("n,io->nio", x[:, 0], p["outer"], precision="highest"),
            x @ p["rounded"].astype("int32").astype("float32"),
            x @ fixed,
            x @ (p["gated"] * x[:1, :1]),
            jax.lax.ragged_dot(
                p["ragged"], x[:16].reshape(2, 8, 8), jnp.array([3, 5], "int32")
            ),
            x
            @ jnp.concatenate(
                [
                    jnp.pad(p["scattered"][:4], ((0, 0), (0, 2))),
                    jnp.pad(p["scattered"][4:], ((0, 0), (2, 0))),
                ]
            ),
            p["looked-up"][ids],
            x @ (lora["w"] + lora["a"] @ lora["b"]),
            x @ (masked["w"] * masked["m"]),
            x @ normed,
            x @ p["overlapping"][:, :5] + x @ p["overlapping"][:, 3:],
            x @ (product["a"] @ product["b"]),
            (x @ p["returned"], p["returned"]),
            jnp.sum(jnp.square(p["summed"])),
            x @ p["taken"],
            p["tied"][ids] @ p["tied"].T,
            jax.nn.relu(x @ p["twice"]) @ p["twice"],
            jax.nn.relu(x @ p["transposed"]) @ p["transposed"].T,
            loop,
        )

    return params, apply_fn, data(N, 8)


# ---- one matrix, used several times


@model("siamese", dense("+both/w", "out"), shapes=((1, 8, 8), (1, 8, 4)))
def _():
    params = {"both": {"w": normal(8, 8), "b": normal(8)}, "out": normal(8, 4, seed=1)}

    def tower(p, x):
        return jax.nn.relu(x @ p["w"] + p["b"][None, :])

    def apply_fn(params, x):
        left, right = tower(params["both"], x), tower(params["both"], x[::-1] ** 2)
        return jnp.abs(left - right) @ params["out"]

    return params, apply_fn, data(N, 8)


@model("called-twice", dense("+in", "+again", "+between", "out"))
def _():
    # the second call sees what the first one made, and another layer in between
    def apply_fn(p, x):
        x = jax.nn.relu(x @ p["in"])
        x = jax.nn.relu(x @ p["again"] + p["b"][None, :])
        x = jax.nn.relu(x @ p["between"])
        x = jax.nn.relu(x @ p["again"] + p["b"][None, :])
        return x @ p["out"]

    params = layers(("in", "again", "between", "out")) | {"b": normal(8)}
    return params, apply_fn, data(N, 8)


@model("tied-scales", dense("tied", "+out"), [("s", "multiplied entry by entry")])
def _():
    # one matrix under two norms: what it answers must be kept as it is
    def apply_fn(p, x):
        one = jax.nn.relu((x @ p["tied"]) * p["s"][:1] + p["b"][None, :])
        two = jax.nn.relu((one @ p["tied"]) * p["s"][1:] + p["b"][None, :])
        return jax.nn.relu(two @ p["out"])

    params = layers(("tied", "out"))
    return params | {"s": normal(2, 8), "b": normal(8)}, apply_fn, data(N, 8)


@model("tied-embedding", dense("+hidden", "embedding"))
def _():
    def apply_fn(p, ids):
        x = jnp.mean(p["embedding"][ids], axis=1)
        return jax.nn.relu(x @ p["hidden"]) @ p["embedding"].T

    params = {"embedding": normal(12, 8), "hidden": normal(8, 8, seed=1)}
    ids = jax.random.randint(jax.random.key(0), (N, 5), 0, 12)
    return params, apply_fn, ids


# ---- what JAX makes hard to follow


@model(
    "max-pool",
    [("w", "conv", "relu"), ("v", "conv", "relu"), ("out", "dense", "linear")],
)
def _():
    def apply_fn(p, x):
        x = convolve(x, p["w"]) + p["b"]
        x = jax.nn.relu(nn.max_pool(x, (2, 2), (2, 2)))
        x = nn.max_pool(convolve(x, p["v"]), (3, 3), (1, 1), "SAME")
        return jax.nn.relu(x).mean((1, 2)) @ p["out"]

    params = {"w": normal(3, 3, 2, 4), "v": normal(3, 3, 4, 8), "b": normal(4)}
    return params | {"out": normal(8, 4)}, relaxed(apply_fn), data(6, 8, 8, 2)


@model("scan-changes-a-leaf", dense("out"), [("w", "carried and changed by a scan")])
def _():
    def apply_fn(params, x):
        def step(w, x):
            return 0.9 * w, x @ w

        x = x.reshape(4, N // 4, 8)
        return jax.lax.scan(step, params["w"], x)[1] @ params["out"]

    return layers(("w", "out")), apply_fn, data(N, 8)


@model("complex", dense("w"), [("fourier", "dtype is complex64")])
def _():
    def apply_fn(params, x):
        return jnp.abs(x.astype("complex64") @ params["fourier"]) @ params["w"]

    params = {"fourier": normal(8, 8, dtype="complex64"), "w": normal(8, 4)}
    return params, apply_fn, data(N, 8)
