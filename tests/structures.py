"""Small networks with units of every kind: what can be removed from each.

Each entry is a function that makes ``(params, apply_fn, batch)``; beside it stand the
groups, as kind and count in any order. ``batch_of`` gives the same network another
batch. Beside them run those networks of ``models`` that have units.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from models import convolve, data, fill, linen, normal, relaxed

from nettrim_jax._trees import Filler, is_array

B = 6  # samples of every batch


class Net(NamedTuple):
    """One network, and what can be removed from it."""

    name: str
    params: Any
    apply_fn: Any
    batch: Any
    groups: tuple[tuple[str, int], ...]


NETS: dict[str, tuple[Any, tuple[tuple[str, int], ...]]] = {}


def net(name, *groups):
    """Registers a function that makes ``(params, apply_fn, batch)``."""

    def register(make):
        assert name not in NETS
        NETS[name] = make, tuple(sorted(groups))
        return make

    return register


@functools.cache
def get(name):
    """The network of this name, made once per process."""
    make, groups = NETS[name]
    params, apply_fn, batch = make()
    return Net(name, params, relaxed(apply_fn), batch, groups)


def tree(**shapes):
    """Params by name, normal numbers of these shapes."""
    return {name: normal(*s, seed=k) for k, (name, s) in enumerate(shapes.items())}


def norm_params(channels, seed):
    """Batch normalisation, as it runs after training."""
    scale, bias, mean, var = (normal(channels, seed=seed + k) for k in range(4))
    return {"scale": 1 + scale, "bias": bias, "mean": mean, "var": 0.5 + var**2}


def batch_norm(x, p):
    """Batch normalisation, as it runs after training."""
    return (x - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def mean_norm(x, p=1.0):
    """The norm that goes over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p


def halves(x, positions):
    """Rotary embedding of halves of heads, ``[b, t, h, d]``."""
    half = x.shape[-1] // 2
    angles = positions[:, None] / 10.0 ** (jnp.arange(half) / half)
    cos, sin = (f(angles)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    one, two = x[..., :half], x[..., half:]
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def attend(q, k, v, causal=False):
    """Attention of ``[b, t, h, d]``."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / float(np.sqrt(q.shape[-1]))
    if causal:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(mask[None, None], scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)


# ---- what is to be the same


def zeros(params, structure, remove):
    """The full params, with zeros where units are removed."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
    leaves = [
        np.array(a) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in leaves
    ]
    for name, units in remove.items():
        units = np.asarray(units)
        for entry in structure[name].entries:
            if entry.leaf is None or not isinstance(leaves[entry.leaf], np.ndarray):
                continue
            for step in np.ndindex(*units.shape[:-1]):
                part = np.moveaxis(leaves[entry.leaf][step], entry.axis - len(step), 0)
                part[np.isin(entry.units, units[step])] = 0
    return Filler(params)([jax.device_put(leaf) for leaf in leaves])


def some(structure, rng, share=0.5):
    """A share of the units of every group; other ones at each step of a loop."""
    out = {}
    for group in structure.groups:
        count = int(share * group.count)
        rows = [
            rng.choice(group.count, count, replace=False)
            for _ in range(int(np.prod(group.steps)))
        ]
        out[group.name] = np.stack(rows).reshape(*group.steps, count)
    return out


def numbers(tree):
    """The floating arrays of a tree, flat, in float64."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_array(leaf)]
    return [
        np.asarray(leaf, np.float64).ravel()
        for leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]


def distance(one, other):
    """The largest difference of two trees, over the largest number of the second."""
    one, other = (np.concatenate([np.zeros(1), *numbers(t)]) for t in (one, other))
    return np.abs(one - other).max() / max(np.abs(other).max(), 1e-30)


def outputs_and_gradients(apply_fn, params, batch):
    """The outputs, and the gradient of a sum of them with fixed weights."""
    arrays = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
    moving = [jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]
    filler = Filler(params)

    def run(some, rest):
        each, others = iter(some), iter(rest)
        full = [next(each) if moves else next(others) for moves in moving]
        out = [y for y in jax.tree.leaves(apply_fn(filler(full), batch)) if is_array(y)]
        flat = [y.ravel() for y in out if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(
            jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype))) for y in flat
        ), out

    given = [a for a, moves in zip(arrays, moving, strict=True) if moves]
    rest = [a for a, moves in zip(arrays, moving, strict=True) if not moves]
    with jax.numpy_dtype_promotion("standard"):
        grads, out = jax.jit(jax.grad(run, has_aux=True))(given, rest)
    each, others = iter(grads), iter(rest)
    return out, filler([next(each) if moves else next(others) for moves in moving])


# ---- plain and convolutional networks


@net("mlp", ("neuron", 10), ("neuron", 8))
def _():
    def apply_fn(p, x):
        x = jax.nn.relu(x @ p["a"] + p["a_bias"])
        return jax.nn.gelu(x @ p["b"] + p["b_bias"]) @ p["c"]

    shapes = dict(a=(6, 10), a_bias=(10,), b=(10, 8), b_bias=(8,), c=(8, 3))
    return tree(**shapes), apply_fn, data(B, 6)


@net("conv-flatten", ("channel", 6), ("channel", 4), ("neuron", 7))
def _():
    def apply_fn(p, x):
        x = jax.nn.relu(batch_norm(convolve(x, p["a"]), p["norm"]))
        x = jax.nn.relu(convolve(x, p["b"], window_strides=(2, 2)) + p["bias"])
        x = nn.max_pool(x, (2, 2), (1, 1)).reshape(x.shape[0], -1)
        return jax.nn.relu(x @ p["c"]) @ p["d"]

    params = tree(a=(3, 3, 2, 6), b=(3, 3, 6, 4), bias=(4,), c=(16, 7), d=(7, 3))
    return params | {"norm": norm_params(6, 20)}, apply_fn, data(B, 6, 6, 2)


def basic(p, x, stride=1, option=None):
    """A residual block of two convolutions."""
    strides = (stride,) * 2
    y = jax.nn.relu(batch_norm(convolve(x, p["a"], window_strides=strides), p["na"]))
    y = batch_norm(convolve(y, p["b"]), p["nb"])
    if option == "A" and stride > 1:
        more = y.shape[-1] - x.shape[-1]
        x = jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((more // 2, more // 2),))
    elif stride > 1:
        x = batch_norm(convolve(x, p["s"], window_strides=(stride,) * 2), p["ns"])
    return jax.nn.relu(x + y)


def resnet(option):
    """Two blocks of a residual network, of which the second halves the image."""

    def apply_fn(p, x):
        x = jax.nn.relu(batch_norm(convolve(x, p["stem"]), p["n0"]))
        x = basic(p["one"], x)
        x = basic(p["two"], x, 2, option)
        return jnp.mean(x, (1, 2)) @ p["head"] + p["bias"]

    one = tree(a=(3, 3, 4, 4), b=(3, 3, 4, 4))
    two = tree(a=(3, 3, 4, 8), b=(3, 3, 8, 8), s=(1, 1, 4, 8))
    if option == "A":
        del two["s"]
    norms = {"na": norm_params(4, 3), "nb": norm_params(4, 9)}
    params = tree(stem=(3, 3, 3, 4), head=(8, 5), bias=(5,))
    params |= {"n0": norm_params(4, 1), "one": one | norms}
    norms = {"na": norm_params(8, 3), "nb": norm_params(8, 9)}
    params["two"] = two | norms
    if option != "A":
        params["two"]["ns"] = norm_params(8, 15)
    return params, apply_fn, data(B, 6, 6, 3)


@net("resnet-a", *[("channel", 4)] * 3, *[("channel", 8)])
def _():
    return resnet("A")


@net("resnet", *[("channel", 4)] * 2, *[("channel", 8)] * 2)
def _():
    return resnet("B")


@net("u-net", ("channel", 4), ("channel", 6), ("channel", 5))
def _():
    def apply_fn(p, x):
        a = jax.nn.relu(convolve(x, p["a"]))
        b = jax.nn.relu(convolve(nn.avg_pool(a, (2, 2), (2, 2)), p["b"]))
        up = jax.image.resize(b, (b.shape[0], *a.shape[1:3], b.shape[3]), "bilinear")
        wide = jnp.concatenate([a, up], -1)
        y = jax.nn.relu(convolve(wide, p["c"]))
        return jax.lax.conv_transpose(y, p["d"], (2, 2), "SAME")

    shapes = dict(a=(3, 3, 2, 4), b=(3, 3, 4, 6), c=(3, 3, 10, 5), d=(2, 2, 5, 3))
    return tree(**shapes), apply_fn, data(B, 4, 4, 2)


@net("mobile", ("channel", 8), ("neuron", 3), ("channel", 6))
def _():
    def apply_fn(p, x):
        x = jax.nn.relu6(convolve(x, p["expand"]))
        x = jax.nn.relu6(
            convolve(x, p["deep"], feature_group_count=x.shape[-1]) + p["b"]
        )
        s = jax.nn.relu(jnp.mean(x, (1, 2)) @ p["squeeze"])
        x = x * jax.nn.sigmoid(s @ p["excite"])[:, None, None, :]
        x = convolve(x, p["project"])
        return jnp.mean(x, (1, 2)) @ p["head"]

    params = tree(
        expand=(1, 1, 3, 8),
        deep=(3, 3, 1, 8),
        b=(8,),
        squeeze=(8, 3),
        excite=(3, 8),
        project=(1, 1, 8, 6),
        head=(6, 4),
    )
    return params, apply_fn, data(B, 4, 4, 3)


@net("grouped", ("group", 2), ("channel", 3), ("channel", 4))
def _():
    def apply_fn(p, x):
        x = jax.nn.relu(convolve(x, p["a"]))
        x = jax.nn.relu(convolve(x, p["b"], feature_group_count=2))
        return jnp.mean(x, (1, 2)) @ p["c"]

    shapes = dict(a=(1, 1, 2, 6), b=(3, 3, 3, 8), c=(8, 3))
    return tree(**shapes), apply_fn, data(B, 4, 4, 2)


@net("group-norm", ("group", 4), ("channel", 5))
def _():
    def apply_fn(p, x):
        x = convolve(x, p["a"])
        parts = x.reshape(*x.shape[:-1], 4, 3)
        mean = parts.mean((1, 2, 4), keepdims=True)
        var = parts.var((1, 2, 4), keepdims=True)
        x = ((parts - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(x.shape)
        x = jax.nn.relu(x * p["scale"] + p["bias"])
        return jnp.mean(jax.nn.relu(convolve(x, p["b"])), (1, 2)) @ p["c"]

    params = tree(a=(3, 3, 2, 12), scale=(12,), bias=(12,), b=(3, 3, 12, 5), c=(5, 3))
    return params, apply_fn, data(B, 4, 4, 2)


@net("shuffled", ("channel", 3), ("channel", 2), ("channel", 2), ("channel", 8))
def _():
    # channels are shuffled between groups: positions in a group stay together
    def apply_fn(p, x):
        x = jax.nn.relu(convolve(x, p["stem"]))
        x = jax.nn.relu(convolve(x, p["a"], feature_group_count=2))
        x = jnp.swapaxes(x.reshape(*x.shape[:-1], 2, 3), -1, -2).reshape(x.shape)
        return jnp.mean(jax.nn.relu(convolve(x, p["b"])), (1, 2)) @ p["c"]

    shapes = dict(stem=(1, 1, 2, 4), a=(3, 3, 2, 6), b=(1, 1, 6, 8), c=(8, 3))
    return tree(**shapes), apply_fn, data(B, 4, 4, 2)


@net("dense-net", ("channel", 4), ("channel", 3), ("channel", 5))
def _():
    def apply_fn(p, x):
        a = jax.nn.relu(convolve(x, p["a"]))
        b = jax.nn.relu(convolve(a, p["b"]))
        c = jax.nn.relu(convolve(jnp.concatenate([a, b], -1), p["c"]))
        return jnp.mean(jnp.concatenate([b, c, a], -1), (1, 2)) @ p["d"]

    shapes = dict(a=(3, 3, 2, 4), b=(3, 3, 4, 3), c=(3, 3, 7, 5), d=(12, 3))
    return tree(**shapes), apply_fn, data(B, 4, 4, 2)


@net("channels-first", ("channel", 4), ("channel", 6))
def _():
    def apply_fn(p, x):
        x = jax.nn.relu(
            jax.lax.conv(x, p["a"], (1, 1), "SAME") + p["bias"][:, None, None]
        )
        x = jax.nn.silu(jax.lax.conv(x, p["b"], (2, 2), "VALID"))
        return x.sum((2, 3)) @ p["c"]

    shapes = dict(a=(4, 2, 3, 3), bias=(4,), b=(6, 4, 2, 2), c=(6, 3))
    return tree(**shapes), apply_fn, data(B, 2, 4, 4)


@net("autoencoder", ("channel", 4), ("neuron", 5), ("channel", 3))
def _():
    def apply_fn(p, x):
        y = jax.nn.relu(convolve(x, p["a"], window_strides=(2, 2)))
        z = jnp.tanh(y.reshape(y.shape[0], -1) @ p["code"])
        y = jax.nn.relu(z @ p["spread"]).reshape(x.shape[0], 2, 2, 3)
        return jax.lax.conv_transpose(y, p["b"], (2, 2), "SAME")

    params = tree(a=(3, 3, 1, 4), code=(16, 5), spread=(5, 12), b=(3, 3, 3, 1))
    return params, apply_fn, data(B, 4, 4, 1)


# ---- transformers


@net("transformer", ("head", 2), ("dimension", 4), ("dimension", 3), ("neuron", 10))
def _():
    def apply_fn(p, x):
        b, t, _ = x.shape
        h = mean_norm(x, p["n1"])
        q, k = (jnp.einsum("btc,chd->bthd", h, p[n]) + p[n + "b"] for n in "qk")
        v = jnp.einsum("btc,chd->bthd", h, p["v"])
        x = x + jnp.einsum("bthd,hdc->btc", attend(q, k, v), p["o"])
        h = mean_norm(x, p["n2"])
        return x + jax.nn.gelu(h @ p["up"] + p["ub"]) @ p["down"]

    shapes = dict(q=(8, 2, 4), k=(8, 2, 4), v=(8, 2, 3), qb=(2, 4), kb=(2, 4))
    shapes |= dict(o=(2, 3, 8), n1=(8,), n2=(8,), up=(8, 10), ub=(10,), down=(10, 8))
    return tree(**shapes), apply_fn, data(B, 4, 8)


def tokens():
    """Numbers of words."""
    ids = np.random.default_rng(0).integers(0, 11, (B, 4))
    return jax.device_put(ids.astype("int32"))


@net("gpt", ("head", 2), ("dimension", 4), ("dimension", 4), ("neuron", 6))
def _():
    def apply_fn(p, ids):
        x = p["embed"][ids] + p["position"][: ids.shape[1]]
        b, t, c = x.shape
        qkv = mean_norm(x, p["n1"]) @ p["qkv"] + p["qkv_bias"]
        q, k, v = (a.reshape(b, t, 2, 4) for a in jnp.split(qkv, 3, -1))
        x = x + attend(q, k, v, causal=True).reshape(b, t, c) @ p["o"]
        gate, up = jnp.split(mean_norm(x, p["n2"]) @ p["gate_up"], 2, -1)
        x = x + (jax.nn.silu(gate) * up) @ p["down"]
        return mean_norm(x, p["n3"]) @ p["embed"].T

    shapes = dict(embed=(11, 8), position=(7, 8), qkv=(8, 24), qkv_bias=(24,))
    shapes |= dict(o=(8, 8), gate_up=(8, 12), down=(6, 8), n1=(8,), n2=(8,), n3=(8,))
    return tree(**shapes), apply_fn, tokens()


@net("grouped-keys", ("head", 2), ("head", 2), ("dimension", 2), ("dimension", 4))
def _():
    def apply_fn(p, x):
        b, t, c = x.shape
        q = (x @ p["q"]).reshape(b, t, 4, 4)
        k, v = ((x @ p[n]).reshape(b, t, 2, 4) for n in "kv")
        places = jnp.arange(t, dtype=x.dtype)
        q, k = halves(q, places), halves(k, places)
        k, v = (jnp.repeat(a, 2, axis=2) for a in (k, v))
        return attend(q, k, v, causal=True).reshape(b, t, 16) @ p["o"]

    return tree(q=(8, 16), k=(8, 8), v=(8, 8), o=(16, 5)), apply_fn, data(B, 4, 8)


def scanned(layer, shapes, count=3):
    """Blocks in a scan, whose params stand one behind the other."""

    def apply_fn(p, x):
        x, _ = jax.lax.scan(lambda x, q: (layer(q, x), None), x, p["layers"])
        return x @ p["out"]

    params = {"layers": tree(**{n: (count, *s) for n, s in shapes.items()})}
    return params | tree(out=(8, 3)), apply_fn


@net("scan-stacked", ("neuron", 10))
def _():
    def layer(p, x):
        return x + jax.nn.relu(mean_norm(x) @ p["up"] + p["bias"]) @ p["down"]

    shapes = dict(up=(8, 10), bias=(10,), down=(10, 8))
    return (*scanned(layer, shapes), data(B, 8))


@net("scan-remat", ("neuron", 6), ("head", 2), ("dimension", 4), ("dimension", 4))
def _():
    @jax.checkpoint
    def layer(p, x):
        b, t, c = x.shape
        q, k, v = (a.reshape(b, t, 2, 4) for a in jnp.split(x @ p["qkv"], 3, -1))
        x = x + attend(q, k, v).reshape(b, t, c) @ p["o"]
        return x + (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    shapes = dict(qkv=(8, 24), o=(8, 8), gate=(8, 6), up=(8, 6), down=(6, 8))
    return (*scanned(layer, shapes), data(B, 3, 8))


@net("loop-in-loop", ("neuron", 5))
def _():
    def layer(p, x):
        def inner(x, q):
            return x + jnp.tanh(x @ q["up"]) @ q["down"], None

        return jax.lax.scan(inner, x, p)[0]

    return (*scanned(layer, dict(up=(2, 8, 5), down=(2, 5, 8))), data(B, 8))


# ---- networks with a state


@net("gru", ("state", 6))
def _():
    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(nn.GRUCell(6))(x)[:, -1])

    return linen(Last(), data(B, 4, 5))


@net("lstm", ("state", 6))
def _():
    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(6))(x)[:, -1])

    return linen(Last(), data(B, 4, 5))


@net("lstm-joined", ("state", 5))
def _():
    # the gates in one matrix, inputs and state in one product
    def apply_fn(p, x):
        def cell(state, x):
            h, c = state
            gates = jnp.concatenate([x, h], -1) @ p["w"] + p["b"]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), None

        start = (jnp.zeros((x.shape[0], 5), x.dtype),) * 2
        (h, _), _ = jax.lax.scan(cell, start, jnp.swapaxes(x, 0, 1))
        return h @ p["out"]

    return tree(w=(8, 20), b=(20,), out=(5, 3)), apply_fn, data(B, 4, 3)


@net("while", ("neuron", 9))
def _():
    def apply_fn(p, x):
        def step(state):
            k, x = state
            return k + 1, x + jnp.tanh(x @ p["a"]) @ p["b"]

        return jax.lax.fori_loop(0, 3, lambda k, x: step((k, x))[1], x)

    return tree(a=(5, 9), b=(9, 5)), apply_fn, data(B, 5)


@net("branches", ("neuron", 7))
def _():
    def apply_fn(p, x):
        h = x @ p["a"]
        h = jax.lax.cond(x[0, 0] > 0, jax.nn.relu, lambda h: h * p["s"], h)
        return h @ p["b"]

    return tree(a=(5, 7), s=(7,), b=(7, 3)), apply_fn, data(B, 5)


# ---- what else there is


@net("experts", ("neuron", 6))
def _():
    def apply_fn(p, x):
        h = jax.nn.relu(jnp.einsum("bd,edf->bef", x, p["up"]))
        gate = jax.nn.softmax(x @ p["gate"])
        return jnp.einsum("bef,efo,be->bo", h, p["down"], gate)

    return tree(up=(3, 5, 6), down=(3, 6, 4), gate=(5, 3)), apply_fn, data(B, 5)


@net("low-rank", ("neuron", 3), ("neuron", 8))
def _():
    def apply_fn(p, x):
        w = p["w"] + p["a"] @ p["b"]
        return jax.nn.relu(x @ w + p["bias"]) @ p["c"]

    shapes = dict(w=(5, 8), a=(5, 3), b=(3, 8), bias=(8,), c=(8, 2))
    return tree(**shapes), apply_fn, data(B, 5)


@net("dropped-out", ("neuron", 9))
def _():
    def apply_fn(p, x):
        h = jax.nn.relu(x @ p["a"])
        keep = jax.random.bernoulli(jax.random.key(3), 0.5, h.shape)
        return jnp.where(keep, 2 * h, 0) @ p["b"]

    return tree(a=(5, 9), b=(9, 3)), apply_fn, data(B, 5)


@jax.custom_vjp
def _flipped(x, w):
    return jnp.tanh(x @ w)


def _flipped_back(saved, g):
    x, w, y = saved
    g = -g * (1 - y**2)  # not the derivative, so that it is seen if it gets lost
    return g @ w.T, x.T @ g


_flipped.defvjp(lambda x, w: (lambda y: (y, (x, w, y)))(_flipped(x, w)), _flipped_back)


@net("own-derivatives", ("neuron", 6), ("neuron", 7))
def _():
    def apply_fn(p, x):
        return jax.nn.relu(_flipped(x, p["a"]) @ p["b"]) @ p["c"]

    return tree(a=(5, 6), b=(6, 7), c=(7, 3)), apply_fn, data(B, 5)


@jax.custom_vjp
def _counted(x, k):
    return x * k.astype(x.dtype), k + 1


_counted.defvjp(
    lambda x, k: (_counted(x, k), k), lambda k, g: (-g[0] * k.astype(g[0].dtype), None)
)


@jax.custom_jvp
def _paired(x, k):
    return jnp.sin(x), 2 * k, 2 * x


@_paired.defjvp
def _(primals, tangents):
    x, k = primals
    none = np.zeros(k.shape, jax.dtypes.float0)
    return _paired(x, k), (3 * tangents[0], none, 5 * tangents[0])


@net("derivatives-in-a-loop", ("neuron", 6))
def _():
    @jax.checkpoint
    def layer(p, x):
        h, k = _counted(x @ p["a"], jnp.int32(3))
        one, k, two = _paired(h, k + jnp.arange(6, dtype="int32"))
        return x + (one + two * k.astype(x.dtype)) @ p["b"]

    return (*scanned(layer, dict(a=(8, 6), b=(6, 8))), data(B, 8))


@net("nnx", ("channel", 4), ("neuron", 6))
def _():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.one = nnx.Linear(4, 6, rngs=rngs)
            self.two = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
            return self.two(nnx.relu(self.one(x)))

    module = relaxed(nnx.eval_shape)(lambda: Net(nnx.Rngs(0)))
    graph, state = nnx.split(module)
    apply_fn = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    return fill(state), apply_fn, data(B, 4, 4, 2)
