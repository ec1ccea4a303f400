"""Single values that a user gives: whether they are numbers, integers or flags.

What NumPy calls a number is as good as one of Python; a truth value is none.
Knows values; knows no settings.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array, DTypeLike


def flag(value: Any) -> bool:
    """Whether it is a truth value."""
    return isinstance(value, bool | np.bool_)


def whole(value: Any) -> bool:
    """Whether it is an integer."""
    return isinstance(value, int | np.integer) and not flag(value)


def number(value: Any) -> bool:
    """Whether it is a real number."""
    return whole(value) or isinstance(value, float | np.floating)


def real(value: Any, flags: bool = False) -> bool:
    """Whether it is a real number or an array of some; truth values are so at wish."""
    if number(value) or (flags and flag(value)):
        return True
    dtype = getattr(value, "dtype", None)
    kinds = (jnp.floating, jnp.integer, *([jnp.bool_] if flags else []))
    return dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in kinds)


def numbers(value: Any, dtype: DTypeLike | None = None) -> Array | None:
    """An array of real numbers, or None if the value is none."""
    try:
        return None if np.iscomplexobj(value) else jnp.asarray(value, dtype)
    except (TypeError, ValueError):
        return None
