"""Upper bounds on the slopes of scalar functions, within a radius of a point.

Each function of ``SLOPES`` takes points, radii and the primitive's parameters, and
bounds the derivative's magnitude on ``[k - r, k + r]``; the bound may be infinite.

Knows scalar functions; knows no layers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from nettrim_jax.typing import Array

Slope = Callable[[Array, Array, Mapping[str, Any]], Array]


def _everywhere(slope: float) -> Slope:
    return lambda k, r, params: jnp.full_like(k, slope)


def _above(least: float, slope: Callable[[Array], Array]) -> Slope:
    """The decreasing slope of a function of numbers above ``least``."""

    def find(k: Array, r: Array, params: Mapping[str, Any]) -> Array:
        low = k - r
        inside = low > least
        return jnp.where(inside, slope(jnp.where(inside, low, least + 1)), jnp.inf)

    return find


def _power(k: Array, r: Array, params: Mapping[str, Any]) -> Array:
    y = params.get("y", 2)
    if y == 0:
        return jnp.zeros_like(k)
    if y > 0:
        return y * (jnp.abs(k) + r) ** (y - 1)
    low = jnp.abs(k) - r
    inside = low > 0
    return jnp.where(inside, -y * jnp.where(inside, low, 1) ** (y - 1), jnp.inf)


SLOPES: dict[str, Slope] = {
    "tanh": _everywhere(1.0),
    "logistic": _everywhere(0.25),
    "erf": _everywhere(2 / math.sqrt(math.pi)),
    "erfc": _everywhere(2 / math.sqrt(math.pi)),
    "atan": _everywhere(1.0),
    "asinh": _everywhere(1.0),
    "sin": _everywhere(1.0),
    "cos": _everywhere(1.0),
    "exp": lambda k, r, params: jnp.exp(k + r),
    "exp2": lambda k, r, params: math.log(2) * jnp.exp2(k + r),
    "expm1": lambda k, r, params: jnp.exp(k + r),
    "log": _above(0.0, lambda a: 1 / a),
    "log1p": _above(-1.0, lambda a: 1 / (1 + a)),
    "sqrt": _above(0.0, lambda a: 0.5 / jnp.sqrt(a)),
    "rsqrt": _above(0.0, lambda a: 0.5 * a**-1.5),
    "integer_pow": _power,
    "square": _power,
}
# on their domain: all numbers, or those above a least one
MONOTONE = frozenset(SLOPES) - {"sin", "cos", "integer_pow", "square"}
