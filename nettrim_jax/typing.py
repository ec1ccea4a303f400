"""Shared vocabulary: type aliases and the letters of every shape comment.

Rows are samples, as in Flax; the papers' ``X`` is ours transposed. Within programs and
the solver all but ``X`` is transposed once more, one unit per row.

====== =======================================================================
letter meaning
====== =======================================================================
n      rows: samples, positions or time steps of one layer's inputs
d_in   inputs of a unit
d_out  units
b      lanes: independent programs of one shape, solved together
X      inputs, ``[n, d_in]``
W      weights, ``[d_in, d_out]``
Z      response ``X W + t``, ``[n, d_out]``
Y      the trained layer's response, ``[n, d_out]``
t      what is added to ``X W`` and does not depend on it, ``[n, d_out]``
V      upper limit where the trained unit is off, ``[n, d_out]``
Omega  the entries where the trained unit is on, ``[n, d_out]`` bool
eps    budget of error, Frobenius norm
R      the response less what is added to it, ``Z - t``
W_hat  the point whose projection is ``(W, R)``; so is ``R_hat``
scale2 squared norms of the columns of ``X``; ``sigma2`` weighs the response beside it
M      what errors of pairs of units count for, ``[d_out, d_out]``
L      a dual of the response, ``[n, d_out]``
rho    step size
====== =======================================================================

This room knows nothing of the others.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.typing

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
DTypeLike = jax.typing.DTypeLike
Params = Any  # a pytree of arrays, in whatever container the user's framework has
Batch = Any  # whatever apply_fn takes as its second argument
ApplyFn = Callable[[Params, Batch], Any]
LeafPath = str  # "params/Dense_0/kernel"
HIGHEST = jax.lax.Precision.HIGHEST  # of products; bf16, TPU's default, will not do


def wide(*dtypes: DTypeLike) -> DTypeLike:
    """The dtype to compute in: float32, or float64 if any of them is."""
    # bfloat16 beside float32 is an error under strict promotion, and meant here
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes, jnp.float32)
