"""Random networks: stacks of layers of every kind with random wiring.

``network(seed)`` gives ``(params, apply_fn, batch)``. Every block maps ``[N, d]`` to
``[N, d']`` with parameters of its own and notes nothing else, so what ``trace`` says of
the whole can only come from the program.
"""

import jax
import jax.numpy as jnp
import numpy as np

N = 24


def _relu(rng):
    forms = (
        jax.nn.relu,
        lambda z: jnp.maximum(z, 0),
        lambda z: jnp.where(z > 0, z, 0),
        lambda z: z,
        jnp.tanh,
        jax.nn.relu6,
        jax.nn.silu,
    )
    return forms[rng.integers(len(forms))]


def _array(rng, *shape):
    scale = 1 / np.sqrt(max(1, shape[0] if len(shape) > 1 else 1))
    return jnp.asarray(scale * rng.normal(size=shape), "float32")


def _dense(rng, d):
    out = int(rng.integers(3, 9))
    after, transposed, biased = _relu(rng), rng.random() < 0.3, rng.random() < 0.6
    params = {"w": _array(rng, out, d) if transposed else _array(rng, d, out)}
    if biased:
        params["b"] = _array(rng, out)

    def call(p, x):
        z = x @ (p["w"].T if transposed else p["w"])
        return after(z + p["b"][None, :] if biased else z)

    return params, call, out


def _normed(rng, d):
    after = _relu(rng)
    params = {"w": _array(rng, d, d), "s": _array(rng, d), "b": _array(rng, d)}

    def call(p, x):
        return after((x @ p["w"]) * p["s"][None, :] + p["b"][None, :])

    return params, call, d


def _residual(rng, d):
    inner, call, out = _dense(rng, d)
    back, after = {"w": _array(rng, out, d)}, _relu(rng)

    def block(p, x):
        return after(call(p["in"], x) @ p["back"]["w"] + x)

    return {"in": inner, "back": back}, block, d


def _heads(rng, d):
    heads, size = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    params = {"w": _array(rng, d, heads, size), "out": _array(rng, heads, size, d)}
    after = _relu(rng)

    def call(p, x):
        z = after(jnp.einsum("nd,dhk->nhk", x, p["w"]))
        return jnp.einsum("nhk,hkd->nd", z, p["out"])

    return params, call, d


def _fused(rng, d):
    params = {"qkv": _array(rng, d, 3 * d)}

    def call(p, x):
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=1)
        return jax.nn.softmax(q @ k.T) @ v

    return params, call, d


def _conv(rng, d):
    channels = int(rng.integers(2, 5))
    after, stride = _relu(rng), int(rng.integers(1, 3))
    params = {"w": _array(rng, 3, 2, channels), "b": _array(rng, channels)}

    def call(p, x):
        x = jnp.stack([x, x[::-1]], axis=2)  # [N, d, 2]
        z = jax.lax.conv_general_dilated(
            x, p["w"], (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return after(z + p["b"][None, None, :]).reshape(N, -1)

    return params, call, channels * -(-d // stride)


def _pooled(rng, d):
    params = {"w": _array(rng, d, 4)}

    def call(p, x):
        z = jnp.max((x @ p["w"]).reshape(N, 2, 2), axis=2)
        return jax.nn.relu(z)

    return params, call, 2


def _scan(rng, d):
    length, after = int(rng.integers(2, 4)), _relu(rng)
    params = {"w": _array(rng, length, d, d)}

    def call(p, x):
        return jax.lax.scan(lambda x, w: (after(x @ w), None), x, p["w"])[0]

    return params, call, d


def _recurrent(rng, d):
    params = {"in": _array(rng, d, 3), "state": _array(rng, 3, 3)}

    def call(p, x):
        def step(h, x):
            h = jnp.tanh(x @ p["in"] + h @ p["state"])
            return h, h

        start = jnp.zeros((4, 3), x.dtype)
        return jax.lax.scan(step, start, x.reshape(6, 4, -1))[1].reshape(N, 3)

    return params, call, 3


def _experts(rng, d):
    params = {"w": _array(rng, 2, d, 4), "gate": _array(rng, d, 2)}

    def call(p, x):
        y = jax.nn.relu(jnp.einsum("nd,edf->nef", x, p["w"]))
        return jnp.einsum("nef,ne->nf", y, jax.nn.softmax(x @ p["gate"]))

    return params, call, 4


def _twice(rng, d):
    params = {"w": _array(rng, d, d), "b": _array(rng, d)}
    after = _relu(rng)

    def call(p, x):
        for _ in range(2):
            x = after(x @ p["w"] + p["b"][None, :])
        return x

    return params, call, d


def _branches(rng, d):
    params = {"one": _array(rng, d, d), "two": _array(rng, d, d)}

    def call(p, x):
        return jax.lax.cond(
            jnp.sum(x) > 0,
            lambda x: jax.nn.relu(x @ p["one"]),
            lambda x: x @ p["two"],
            x,
        )

    return params, call, d


def _lookup(rng, d):
    params = {"table": _array(rng, 5, d), "w": _array(rng, d, d)}

    def call(p, x):
        ids = (jnp.abs(x[:, 0]) * 7).astype("int32") % 5
        return (x + p["table"][ids]) @ p["w"]

    return params, call, d


def _lora(rng, d):
    params = {"w": _array(rng, d, d), "a": _array(rng, d, 2), "b": _array(rng, 2, d)}

    def call(p, x):
        return x @ (p["w"] + p["a"] @ p["b"])

    return params, call, d


BLOCKS = (
    (_dense,) * 4
    + (_normed, _residual, _heads, _fused, _conv, _pooled, _scan, _recurrent)
    + (_experts, _twice, _branches, _lookup, _lora)
)
WRAPS = (lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f)))


def network(seed):
    """A network of two to six blocks; some run side by side, some twice over."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(4, 9))
    x = jnp.asarray(rng.normal(size=(N, d)), "float32")
    params, calls = [], []
    for _ in range(int(rng.integers(2, 7))):
        block, call, out = BLOCKS[rng.integers(len(BLOCKS))](rng, d)
        call = WRAPS[rng.integers(len(WRAPS))](call)
        wiring = rng.choice(["plain", "plain", "skip", "beside"])
        if wiring == "skip" and out == d:
            calls.append(lambda p, x, call=call: call(p, x) + x)
        elif wiring == "beside":
            calls.append(
                lambda p, x, call=call: jnp.concatenate([call(p, x), x[:, :1]], axis=1)
            )
            out += 1
        else:
            calls.append(call)
        params.append(block)
        d = out

    def apply_fn(params, x):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for p, call in zip(params, calls, strict=True):
                x = call(p, x)
        return x

    return params, apply_fn, x
