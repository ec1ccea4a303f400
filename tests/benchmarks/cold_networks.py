"""Networks of shapes that people prune: what ``cold.py`` measures.

Each function gives ``(params, apply_fn, batch)``. Weights are random, except for those
of the sentence encoder, which gives None where its file is absent. What a call costs
does not depend on the values of weights, but for the steps of Net-Trim.
"""

import math
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
for _folder in ("tests", "examples"):
    if str(ROOT / _folder) not in sys.path:
        sys.path.append(str(ROOT / _folder))

# expansion, channels, number of blocks, stride of the first, side of the kernel
LITE = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def normal(*shape, seed=0):
    """Normal numbers, float32."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def readme():
    """The network of the README."""
    rng = np.random.default_rng(0)
    shapes = {"hidden": (64, 128), "output": (128, 10)}
    params = {k: jnp.asarray(rng.normal(size=s) ** 3, "f") for k, s in shapes.items()}

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["hidden"]) @ params["output"]

    return params, apply_fn, jnp.asarray(rng.normal(size=(2000, 64)), "f")


class _Conv(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 32, 32):
            x = nn.Conv(width, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def conv():
    """Three convolutions with batch norm and two dense layers, by Linen."""
    return _linen(_Conv(), normal(64, 16, 16, 3))


def resnet20(images=32):
    """ResNet-20 of CIFAR-10's shape, by Linen."""
    import resnet_cifar  # loads images, too, so what others need is more

    return _linen(resnet_cifar.ResNet20(), normal(images, 32, 32, 3))


class _Lite(nn.Module):
    @nn.compact
    def __call__(self, x):
        def layer(x, channels, side=1, stride=1, groups=1, act=nn.relu6):
            x = nn.Conv(
                channels,
                (side, side),
                stride,
                feature_group_count=groups,
                use_bias=False,
            )(x)
            return act(nn.BatchNorm(use_running_average=True)(x))

        x = layer(x, 32, side=3, stride=2)
        for expansion, channels, blocks, stride, side in LITE:
            for block in range(blocks):
                y, wide = x, expansion * x.shape[-1]
                if expansion > 1:
                    y = layer(y, wide)
                here = 1 if block else stride
                y = layer(y, wide, side, here, groups=wide)
                y = layer(y, channels, act=lambda a: a)
                x = y + x if x.shape == y.shape else y
        return nn.Dense(1000)(layer(x, 1280).mean((1, 2)))


def efficientnet(images=16, size=64):
    """EfficientNet-Lite0: 50 layers, most of them 1 x 1 or depthwise, by Linen."""
    return _linen(_Lite(), normal(images, size, size, 3))


def _linen(network, x):
    return jax.jit(network.init)(jax.random.key(0), x), network.apply, x


def transformer(layers=12, width=256, heads=4, inner=1024, sequences=4, length=64):
    """A transformer whose layers are unrolled, with the norm first and GELU."""
    shapes = {name: (width, width) for name in ("query", "key", "value", "out")}
    shapes |= {"up": (width, inner), "down": (inner, width)}
    norms = ("norm1", "norm2")
    params = {
        f"layer{i}": {
            name: normal(*shape, seed=(i, at)) / math.sqrt(shape[0])
            for at, (name, shape) in enumerate(shapes.items())
        }
        | {name: {"scale": jnp.ones(width), "bias": jnp.zeros(width)} for name in norms}
        for i in range(layers)
    }

    def apply_fn(params, x):
        for i in range(layers):
            p = params[f"layer{i}"]
            y = _normed(x, p["norm1"]["scale"], p["norm1"]["bias"], 1e-6)
            y = _attention(*(y @ p[name] for name in ("query", "key", "value")), heads)
            x = x + y @ p["out"]
            y = _normed(x, p["norm2"]["scale"], p["norm2"]["bias"], 1e-6)
            x = x + jax.nn.gelu(y @ p["up"]) @ p["down"]
        return x

    return params, apply_fn, normal(sequences, length, width)


def minilm(speeches=128):
    """The sentence encoder all-MiniLM-L6-v2 on speeches; None without its file."""
    from problems import data_file

    file = data_file("minilm_l6.npz")
    if file is None:
        return None
    with np.load(file) as z:
        batch = tuple(jnp.asarray(z[f"{a}_train"][:speeches]) for a in ("ids", "mask"))
        names = [name for name in z.files if name.endswith(("weight", "bias"))]
        params = {name: jnp.asarray(z[name], "float32") for name in names}
    return params, _encode, batch


def _encode(params, batch):
    """The mean of the last layer over the positions that count, of length 1."""
    ids, mask = batch

    def dense(x, name):
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def normed(x, name):
        name = f"{name}.LayerNorm"
        return _normed(x, params[f"{name}.weight"], params[f"{name}.bias"], 1e-12)

    tables = (
        params[f"embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    words, positions, kinds = tables
    x = words[ids] + positions[None, : ids.shape[1]] + kinds[0][None, None, :]
    x = normed(x, "embeddings")
    for i in range(6):
        at = f"encoder.layer.{i}"
        near, out = f"{at}.attention.self", f"{at}.attention.output"
        own = (dense(x, f"{near}.{name}") for name in ("query", "key", "value"))
        y = _attention(*own, 12, mask)
        x = normed(x + dense(y, f"{out}.dense"), out)
        y = jax.nn.gelu(dense(x, f"{at}.intermediate.dense"), approximate=False)
        x = normed(x + dense(y, f"{at}.output.dense"), f"{at}.output")
    x = jnp.sum(jnp.where(mask[:, :, None], x, 0), axis=1)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def _normed(x, scale, bias, epsilon):
    """Layer normalisation."""
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * scale + bias


def _attention(query, key, value, heads, mask=None):
    """Attention to the positions that count, of ``[sequences, length, width]``."""
    query, key, value = (
        a.reshape(*a.shape[:2], heads, -1) for a in (query, key, value)
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, -1e9)
    seen = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    return seen.reshape(*seen.shape[:2], -1)


NETWORKS = {
    "readme": readme,
    "conv": conv,
    "resnet20": resnet20,
    "efficientnet": efficientnet,
    "minilm": minilm,
    "transformer": transformer,
}
