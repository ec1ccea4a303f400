"""Every primitive's rule: what it lets go, what not, and that removed is zero.

A case is a function of hidden units ``h [4, 6]`` and of weights behind them. Each case
has weights of its own, and all cases of a family are one network.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import structures
from jax import lax
from models import data, normal, relaxed
from structures import distance, zeros

import nettrim_jax as nt
from nettrim_jax.structure.rules import FAMILIES, RULES
from nettrim_jax.tracing import jaxprs

N, D, H, OUT = 4, 5, 6, 3


def image(h):
    """The units as channels of an image."""
    return jnp.broadcast_to(h[:, None, None, :], (N, 4, 4, h.shape[-1]))


def conv(x, w, **kwargs):
    kwargs = {"window_strides": (1, 1), "padding": "SAME"} | kwargs
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, dimension_numbers=layout, **kwargs)


def unary(function):
    """The units through a function, into a product."""
    return lambda h, v: function(h) @ v


def floats(function):
    """The same of what are no floating numbers."""
    return lambda h, v: function(h).astype(h.dtype) @ v


@jax.custom_jvp
def bent(x):
    return jnp.maximum(x, 0)


@bent.defjvp
def _(primals, tangents):
    return bent(*primals), 0.25 * tangents[0]


@jax.custom_vjp
def turned(x):
    return jnp.tanh(x)


turned.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (-g * jnp.cos(x),))

V = (H, OUT)
STEPS = np.arange(3, dtype="float32")
ints = lambda h: (4 * h).astype("int32")  # noqa: E731
whole = lambda function: floats(lambda h: function(ints(h)))  # noqa: E731
cases: dict[str, dict] = {}
cases["elementwise"] = {
    "add": (lambda h, v: (h + h * 2) @ v, V, H),
    "add_any": (
        lambda h, v: jax.grad(lambda a: jnp.sum(a * a) + jnp.sum(a))(h) @ v,
        V,
        0,
    ),
    "sub": (lambda h, v: (h - 2) @ v, V, H),
    "mul": (lambda h, v: (h * jnp.cos(h)) @ v, V, H),
    "div": (lambda h, v: (h / (1 + h * h)) @ v, V, H),
    "div-by-zero": (lambda h, v: (h / jnp.sin(h)) @ v, V, 0),
    "log-of-zero": (lambda h, v: jnp.log(jnp.abs(h)) @ v, V, 0),
    "rem": (lambda h, v: lax.rem(h, jnp.full_like(h, 0.7)) @ v, V, H),
    "neg": (unary(lambda h: -h), V, H),
    "sign": (unary(jnp.sign), V, H),
    "abs": (unary(jnp.abs), V, H),
    "sqrt": (unary(lambda h: jnp.sqrt(jnp.abs(h) + 1)), V, H),
    "rsqrt": (unary(lambda h: lax.rsqrt(h * h + 1)), V, H),
    "cbrt": (unary(lambda h: jnp.cbrt(h + 3)), V, H),
    "exp": (unary(jnp.exp), V, H),
    "exp2": (unary(jnp.exp2), V, H),
    "log": (unary(lambda h: jnp.log(h * h + 1)), V, H),
    "log1p": (unary(lambda h: jnp.log1p(h * h)), V, H),
    "expm1": (unary(jnp.expm1), V, H),
    "logistic": (unary(jax.nn.sigmoid), V, H),
    "sin": (unary(jnp.sin), V, H),
    "cos": (unary(jnp.cos), V, H),
    "tan": (unary(lambda h: jnp.tan(h / 9)), V, H),
    "asin": (unary(lambda h: jnp.arcsin(h / 9)), V, H),
    "acos": (unary(lambda h: jnp.arccos(h / 9)), V, H),
    "atan": (unary(lambda h: lax.atan(h)), V, H),
    "atan2": (unary(lambda h: jnp.arctan2(h, h + 9)), V, H),
    "sinh": (unary(jnp.sinh), V, H),
    "cosh": (unary(jnp.cosh), V, H),
    "tanh": (unary(jnp.tanh), V, H),
    "asinh": (unary(jnp.arcsinh), V, H),
    "acosh": (unary(lambda h: lax.acosh(h * h + 2)), V, H),
    "atanh": (unary(lambda h: jnp.arctanh(h / 9)), V, H),
    "erf": (unary(lax.erf), V, H),
    "erfc": (unary(lax.erfc), V, H),
    "erf_inv": (unary(lambda h: lax.erf_inv(h / 9)), V, H),
    "lgamma": (unary(lambda h: lax.lgamma(h * h + 1)), V, H),
    "digamma": (unary(lambda h: lax.digamma(h * h + 1)), V, H),
    "igamma": (unary(lambda h: lax.igamma(h * h + 1, h * h + 2)), V, H),
    "igammac": (unary(lambda h: lax.igammac(h * h + 1, h * h + 2)), V, H),
    "igamma_grad_a": (
        unary(lambda h: lax.igamma_grad_a(h * h + 1, h * h + 2)),
        V,
        H,
    ),
    "bessel_i0e": (unary(lax.bessel_i0e), V, H),
    "bessel_i1e": (unary(lax.bessel_i1e), V, H),
    "zeta": (unary(lambda h: lax.zeta(h * h + 2, h * h + 1)), V, H),
    "polygamma": (unary(lambda h: lax.polygamma(h * 0 + 1, h * h + 1)), V, H),
    "regularized_incomplete_beta": (
        unary(lambda h: lax.betainc(h * h + 1, h * h + 1, h * 0 + 0.5)),
        V,
        H,
    ),
    "floor": (unary(lambda h: jnp.floor(4 * h)), V, H),
    "ceil": (unary(lambda h: jnp.ceil(4 * h)), V, H),
    "round": (unary(lambda h: jnp.round(4 * h)), V, H),
    "square": (unary(jnp.square), V, H),
    "integer_pow": (unary(lambda h: h**3), V, H),
    "pow": (unary(lambda h: lax.pow(h * h + 1, h)), V, H),
    "max": (unary(lambda h: jnp.maximum(h, h * h)), V, H),
    "min": (unary(lambda h: jnp.minimum(h, 0.1)), V, H),
    "clamp": (unary(lambda h: lax.clamp(np.float32(-0.5), h, np.float32(0.5))), V, H),
    "select_n": (unary(lambda h: jnp.where(h > 0, h, h * h)), V, H),
    "nextafter": (unary(lambda h: lax.nextafter(h, h + 1)), V, H),
    "is_finite": (floats(jnp.isfinite), V, H),
    "eq": (floats(lambda h: h == 0), V, H),
    "ne": (floats(lambda h: h != 0), V, H),
    "lt": (floats(lambda h: h < 0), V, H),
    "le": (floats(lambda h: h <= 0), V, H),
    "gt": (floats(lambda h: h > 0), V, H),
    "ge": (floats(lambda h: h >= 0), V, H),
    "eq_to": (floats(lambda h: lax.eq_to_p.bind(h, h + 1)), V, H),
    "lt_to": (floats(lambda h: lax.lt_to_p.bind(h, h + 1)), V, H),
    "le_to": (floats(lambda h: lax.le_to_p.bind(h, h + 1)), V, H),
    "and": (whole(lambda k: k & 3), V, H),
    "or": (whole(lambda k: k | 3), V, H),
    "xor": (whole(lambda k: k ^ 3), V, H),
    "not": (whole(lambda k: ~k), V, H),
    "shift_left": (whole(lambda k: k << 1), V, H),
    "shift_right_logical": (
        whole(lambda k: lax.shift_right_logical(k, k * 0 + 1)),
        V,
        H,
    ),
    "shift_right_arithmetic": (whole(lambda k: k >> 1), V, H),
    "population_count": (whole(lax.population_count), V, H),
    "clz": (whole(lax.clz), V, H),
    "convert_element_type": (unary(lambda h: h.astype("float64")), V, H),
    "bitcast_convert_type": (
        lambda h, v: (lax.bitcast_convert_type(h, "int32") % 7).astype(h.dtype) @ v,
        V,
        H,
    ),
    "reduce_precision": (unary(lambda h: lax.reduce_precision(h, 5, 10)), V, H),
    "copy": (unary(lambda h: lax.copy_p.bind(h)), V, H),
    "copy_p": (unary(jnp.array), V, H),
    "name": (unary(lambda h: jax.ad_checkpoint.checkpoint_name(h, "h")), V, H),
    "stop_gradient": (unary(lax.stop_gradient), V, H),
    "optimization_barrier": (
        unary(lambda h: lax.optimization_barrier((h, h * 2))[1]),
        V,
        H,
    ),
    "complex": (unary(lambda h: lax.real(lax.complex(h, h))), V, H),
    "imag": (unary(lambda h: lax.imag(lax.complex(h, h))), V, H),
    "conj": (unary(lambda h: lax.imag(lax.conj(lax.complex(h, h)))), V, H),
    "real": (unary(lambda h: lax.real(lax.complex(h, h))), V, H),
    "stretched": (lambda h, v: (h * jnp.sum(h[:, :1], 1, keepdims=True)) @ v, V, H - 1),
}
cases["shapes"] = {
    "reshape": (lambda h, v: h.reshape(2, 2, H) @ v, V, H),
    "reshape-merged": (
        lambda h, v: image(h).reshape(N, -1) @ v,
        (16 * H, OUT),
        H + 4 + 4,
    ),
    "reshape-split": (
        lambda h, v: jnp.einsum("nab,abc->nc", h.reshape(N, 2, 3), v),
        (2, 3, OUT),
        5,
    ),
    "reshape-back": (lambda h, v: h.reshape(N, 2, 3).reshape(N, H) @ v, V, 5),
    "reshape-ones": (lambda h, v: h.reshape(N, 1, H, 1)[:, 0, :, 0] @ v, V, H),
    "squeeze": (lambda h, v: lax.squeeze(h[:, None, :], (1,)) @ v, V, H),
    "broadcast_in_dim": (lambda h, v: jnp.sum(image(h), (1, 2)) @ v, V, H),
    "transpose": (lambda h, v: (v.T @ h.T).T, V, H),
    "outer": (lambda h, v: jnp.einsum("na,nb,abc->nc", h, h, v), (H, H, OUT), H),
}
cases["pieces"] = {
    "slice": (lambda h, v: lax.slice(h, (0, 1), (N, H), (1, 2)) @ v, (3, OUT), 3),
    "slice-rows": (lambda h, v: lax.slice(h, (1, 0), (3, H)) @ v, V, H),
    "split": (lambda h, v: sum(a @ v for a in jnp.split(h, 2, 1)), (3, OUT), 3),
    "concatenate": (lambda h, v: jnp.concatenate([h, h], 1) @ v, (2 * H, OUT), H),
    "concatenate-ones": (
        lambda h, v: jnp.concatenate([h, jnp.ones((N, 2), h.dtype)], 1) @ v,
        (H + 2, OUT),
        H + 2,
    ),
    "pad": (lambda h, v: jnp.pad(h, ((0, 0), (1, 2))) @ v, (H + 3, OUT), H + 3),
    "pad-negative": (
        lambda h, v: lax.pad(h, h[0, 0] * 0, ((0, 0, 0), (-1, 1, 0))) @ v,
        V,
        5,
    ),
    "pad-cut": (
        lambda h, v: lax.pad(h, jnp.float32(0), ((0, 0, 0), (-1, -2, 0))) @ v,
        (3, OUT),
        3,
    ),
    "rev": (lambda h, v: h[:, ::-1] @ v, V, H),
}
cases["contractions"] = {
    "dot_general": (lambda h, v: h @ v, V, H),
    "dot-batched": (lambda h, v: jnp.einsum("nh,hc->hnc", h, v).sum(0), V, 0),
    "dot-of-two": (lambda h, v: jnp.einsum("nh,mh->nm", jnp.tanh(h), h @ v), (H, H), H),
    "dot-heads": (lambda h, v: jnp.einsum("nh,nh,hc->nc", h, h, v), V, H),
    "ragged_dot_general": (
        lambda h, v: lax.ragged_dot(h, v, jnp.array([3, 1], "int32")),
        (2, H, OUT),
        H,
    ),
}
cases["convolutions"] = {
    "conv_general_dilated": (lambda h, v: conv(image(h), v), (3, 3, H, OUT), H),
    "strided": (
        lambda h, v: conv(image(h), v, window_strides=(2, 2), padding="VALID"),
        (3, 3, H, OUT),
        H,
    ),
    "transposed": (
        lambda h, v: lax.conv_transpose(image(h), v, (2, 2), "SAME"),
        (3, 3, H, OUT),
        H,
    ),
    "grouped-in": (
        lambda h, v: conv(image(h), v, feature_group_count=2),
        (3, 3, 3, 4),
        3,
    ),
    "batch-grouped": (
        lambda h, v: conv(image(h), v, batch_group_count=2),
        (3, 3, H, 4),
        0,
    ),
}
rows = lambda function: lambda h, v: function(image(h)) @ v  # noqa: E731
window = dict(
    window_dimensions=(1, 2, 2, 1), window_strides=(1, 2, 2, 1), padding="SAME"
)
cases["reductions"] = {
    "reduce_sum": (rows(lambda x: x.sum((1, 2))), V, H),
    "reduce_max": (rows(lambda x: x.max(1)), V, H),
    "reduce_min": (rows(lambda x: x.min(1)), V, H),
    "reduce_prod": (rows(lambda x: x.prod(1)), V, H),
    "reduce_and": (lambda h, v: (image(h) > 0).all(1).astype(h.dtype) @ v, V, H),
    "reduce_or": (lambda h, v: (image(h) > 0).any(1).astype(h.dtype) @ v, V, H),
    "reduce_xor": (
        lambda h, v: (
            lax.reduce_xor_p.bind(ints(image(h)), axes=(1,)).astype(h.dtype) @ v
        ),
        V,
        H,
    ),
    "reduce": (
        rows(lambda x: lax.reduce(x, np.float32(0), lambda a, b: a * 0.5 + b, (1,))),
        V,
        H,
    ),
    "argmax": (lambda h, v: jnp.argmax(image(h), 1).astype(h.dtype) @ v, V, H),
    "argmin": (lambda h, v: jnp.argmin(image(h), 1).astype(h.dtype) @ v, V, H),
    "cumsum": (rows(lambda x: jnp.cumsum(x, 1)), V, H),
    "cumprod": (rows(lambda x: jnp.cumprod(x, 1)), V, H),
    "cummax": (rows(lambda x: lax.cummax(x, 1)), V, H),
    "cummin": (rows(lambda x: lax.cummin(x, 1)), V, H),
    "cumlogsumexp": (rows(lambda x: lax.cumlogsumexp(x, 1)), V, H),
    "sort": (rows(lambda x: jnp.sort(x, 1)), V, H),
    "sort-pairs": (rows(lambda x: lax.sort((x, x * 2), dimension=1)[1]), V, H),
    "top_k": (
        lambda h, v: (
            jnp.swapaxes(lax.top_k(jnp.swapaxes(image(h), 1, 3), 2)[0], 1, 3) @ v
        ),
        V,
        H,
    ),
    "approx_top_k": (
        rows(lambda x: lax.approx_max_k(x, 2, reduction_dimension=1)[0]),
        V,
        H,
    ),
    "reduce_window_max": (
        rows(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, **window)),
        V,
        H,
    ),
    "reduce_window_min": (
        rows(lambda x: lax.reduce_window(x, jnp.inf, lax.min, **window)),
        V,
        H,
    ),
    "reduce_window_sum": (
        rows(lambda x: lax.reduce_window(x, np.float32(0), lax.add, **window)),
        V,
        H,
    ),
    "reduce_window": (
        rows(
            lambda x: lax.reduce_window(
                x, np.float32(0), lambda a, b: a + 2 * b, **window
            )
        ),
        V,
        H,
    ),
}
at = lambda h: jnp.argmax(jnp.abs(lax.stop_gradient(h[:, 0]))).astype("int32")  # noqa: E731
SCATTER = "add mul min max".split()
cases["indexing"] = {
    "gather": (lambda h, v: h[jnp.array([2, 0, 1])] @ v, V, H),
    "dynamic_slice": (
        lambda h, v: lax.dynamic_slice_in_dim(h, jnp.int32(1), 2) @ v,
        V,
        H,
    ),
    "dynamic_update_slice": (
        lambda h, v: (
            lax.dynamic_update_slice(h, 2 * h[:2], (jnp.int32(1), jnp.int32(0))) @ v
        ),
        V,
        H,
    ),
    "scatter": (lambda h, v: h.at[jnp.array([2, 0])].set(h[:2] * 2) @ v, V, H),
    **{
        f"scatter-{name}": (
            lambda h, v, name=name: (
                getattr(h.at[jnp.array([2, 0])], name)(h[:2] * 2) @ v
            ),
            V,
            H,
        )
        for name in SCATTER
    },
    "scatter-sub": (
        lambda h, v: h.at[jnp.array([2, 0])].subtract(h[:2] * 2) @ v,
        V,
        H,
    ),
    "indexed": (lambda h, v: h[:, jnp.array([2, 0])] @ v, (2, OUT), 0),
}
cases["sources"] = {
    "iota": (lambda h, v: (h * lax.iota("float32", H)) @ v, V, H),
    "random_bits": (
        lambda h, v: (h * (jax.random.bits(jax.random.key(0), h.shape) % 5)) @ v,
        V,
        H,
    ),
    "rng_bit_generator": (
        lambda h, v: (
            (h * (lax.rng_bit_generator(jnp.ones(4, "uint32"), h.shape)[1] % 5)) @ v
        ),
        V,
        H,
    ),
}
cases["loops"] = {
    "scan": (
        lambda h, v: lax.scan(lambda c, k: (jnp.tanh(c + k), c), h, STEPS)[0] @ v,
        V,
        H,
    ),
    "scan-ys": (
        lambda h, v: lax.scan(lambda c, k: (c, c * k), h, STEPS)[1] @ v,
        V,
        H,
    ),
    "scan-start": (
        lambda h, v: (
            lax.scan(
                lambda c, k: (c + h, None),
                jnp.zeros(h.shape, h.dtype),
                None,
                3,
                reverse=True,
            )[0]
            @ v
        ),
        V,
        H,
    ),
    "while": (
        lambda h, v: (
            lax.while_loop(
                lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, h)
            )[1]
            @ v
        ),
        V,
        H,
    ),
    "cond": (
        lambda h, v: lax.cond(h.shape[0] > at(h), jnp.sin, lambda a: 2 * a, h) @ v,
        V,
        H - 1,
    ),
    "switch": (
        lambda h, v: lax.switch(at(h), [jnp.sin, jnp.tanh, lambda a: a], h) @ v,
        V,
        H - 1,
    ),
}
cases["calls"] = {
    "custom_jvp_call": (unary(bent), V, H),
    "custom_vjp_call": (unary(turned), V, H),
    "checkpoint": (unary(jax.checkpoint(lambda h: jnp.sin(jnp.sin(h)))), V, H),
    "jit": (unary(jax.jit(jnp.sin)), V, H),
}
# in older or newer versions of JAX only, or under another name
NAMES = {
    "custom_vjp_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_vjp_call_jaxpr",
    "copy",
    "copy_p",
    "stop_gradient",
}
NAMES |= {"scatter_add", "scatter_mul", "scatter_min", "scatter_max", "scatter_sub"}
NAMES |= {"rng_uniform", "conj", "add_any", "square", "scatter-sub", "sub", "expm1"}


@functools.cache
def network(family):
    """All cases of a family side by side."""

    def apply_fn(p, x):
        return {
            name: case(x @ p[name]["w"], p[name]["v"])
            for name, (case, _, _) in cases[family].items()
        }

    params = {
        name: {"w": normal(D, H, seed=k), "v": normal(*shape, seed=k + 1)}
        for k, (name, (_, shape, _)) in enumerate(cases[family].items())
    }
    return params, relaxed(apply_fn), data(N, D)


@pytest.mark.parametrize("family", cases)
def test_a_rule_lets_go_what_it_should(family):
    params, apply_fn, x = network(family)
    found = nt.units(params, apply_fn, x)
    counts = dict.fromkeys(cases[family], 0)
    for group in found.groups:
        [name] = {entry.path.split("/")[0] for entry in group.entries}
        counts[name] += group.count
    assert counts == {name: count for name, (_, _, count) in cases[family].items()}


# loops are looked at in tests of whole networks, too
QUICK = [
    f if f != "elementwise" else pytest.param(f, marks=pytest.mark.slow) for f in cases
]


@pytest.mark.parametrize("family", QUICK)
def test_what_a_rule_removes_is_zero(family):
    params, apply_fn, x = network(family)
    found = nt.units(params, apply_fn, x)
    remove = structures.some(found, np.random.default_rng(2))
    small = nt.shrink(params, apply_fn, x, remove)
    full = zeros(params, found, remove)
    got, expected = jax.jit(lambda s, f, x: (small.apply_fn(s, x), apply_fn(f, x)))(
        small.params, full, x
    )
    for name in cases[family]:
        assert distance(got[name], expected[name]) < 1e-5, name


def primitives(jaxpr):
    """The names of all primitives in a jaxpr."""
    out = set()
    for eqn in jaxpr.eqns:
        out.add(eqn.primitive.name)
        body = jaxprs.called(eqn)
        for inner in [body] if body is not None else jaxprs.branches(eqn):
            out |= primitives(inner.jaxpr)
    return out


def test_every_rule_has_a_case():
    seen = set()
    for family in cases:
        params, apply_fn, x = network(family)
        seen |= primitives(jax.make_jaxpr(apply_fn)(params, x).jaxpr)
    assert set(RULES) - seen <= NAMES
    assert len(FAMILIES) == len(cases)
