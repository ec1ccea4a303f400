"""Operations of newer versions of JAX in the words of older ones.

The other files know these then, whatever the version.

Knows operations; knows no program.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax


def _stack(*parts: Any, axis: int) -> Any:
    return lax.concatenate([lax.expand_dims(part, (axis,)) for part in parts], axis)


def _unstack(whole: Any, axis: int) -> list[Any]:
    every = range(whole.shape[axis])
    return [
        lax.squeeze(lax.slice_in_dim(whole, k, k + 1, axis=axis), (axis,))
        for k in every
    ]


def _tile(whole: Any, reps: Sequence[int]) -> Any:
    sizes = [size for pair in zip(reps, whole.shape, strict=True) for size in pair]
    own = [2 * axis + 1 for axis in range(whole.ndim)]
    wide = lax.broadcast_in_dim(whole, sizes, own)
    return lax.reshape(wide, tuple(np.multiply(reps, whole.shape).tolist()))


OLDER: dict[str, Callable[..., Any]] = {
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
}


def older(name: str, params: dict[str, Any], avals: Sequence[Any]) -> Any:
    """The closed jaxpr of an operation in older ones; None if it is one."""
    if name not in OLDER:
        return None
    given = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(lambda *args: OLDER[name](*args, **params))(*given)
