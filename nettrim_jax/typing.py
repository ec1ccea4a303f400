"""Type aliases, and the letters that stand for sizes and arrays everywhere.

Rows are samples, as in Flax; the papers' ``X`` is ours transposed. Programs and the
solver transpose all but ``X`` once more, to one unit per row.

======= =======================================================================
letter  meaning
======= =======================================================================
n       rows: samples, positions or time steps of one layer's inputs
d_in    inputs of a unit
d_out   units
k, m    other sizes, explained where they occur
b       in shapes, lanes: the matrices of a stack that is solved as one problem;
        otherwise the bias, ``[d_out]``
X       inputs, ``[n, d_in]``
W       weights, ``[d_in, d_out]``
t       offset, which is added to ``X W`` and does not depend on it, ``[n, d_out]``
Z       response ``X W + t``, ``[n, d_out]``; in methods also a copy of ``W``
Y       the trained layer's response, ``[n, d_out]``
Omega   the entries where the trained unit is on (``on``), ``[n, d_out]`` bool
V       upper limit where the trained unit is off, ``[n, d_out]``
epsilon budget of error, Frobenius norm
R       the response less its offset, ``Z - t``; in a fit, the residual
W_hat   with ``R_hat``, the point whose projection on the graph is ``(W, R)``
U       scaled dual, the point less its projection; in SparseGPT a Cholesky factor
scale2  weights of the columns of ``W`` in the distance on the graph, ``[d_in]``
sigma2  weight of the response in that distance
S       the part of ``R`` that the projection removes, ``[d_out, n]``
L       a dual of the response, ``[n, d_out]``
D       the dual bound, a lower bound on the optimum
A       ``-L X``, the argument of ``g*``; in a fit, ``W`` with a free bias, transposed
P       the trained response before the ReLU, ``[n, d_out]``; in a fit, a direction
P0      the trained weights' response to ``X``, ``[n, d_out]``
M       weights of the errors of pairs of units, ``[d_out, d_out]``
H       second moments of the inputs, ``[d_in, d_in]``; in a fit, curvature times ``P``
G       linear term of a quadratic loss, ``[d_in, d_out]``; in formulas, a group
e, Q    eigenvalues and eigenvectors of second moments or of ``M``
g, f    the penalty on the weights, and the requirement on the response
rho     step size
======= =======================================================================

Knows the types of JAX; knows no other module.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.typing

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
DTypeLike = jax.typing.DTypeLike
Params = Any  # a pytree of arrays, in any container of the user's framework
Batch = Any  # the second argument of apply_fn, of any type
ApplyFn = Callable[[Params, Batch], Any]
# of rows: one array for every batch, or a function of the batch
Weights = ArrayLike | Callable[[Batch], ArrayLike]
LeafPath = str  # "params/Dense_0/kernel"
HIGHEST = jax.lax.Precision.HIGHEST  # of products; bf16, TPU's default, is too coarse


def wide(*dtypes: DTypeLike) -> DTypeLike:
    """The dtype to compute in: float32, or float64 if any of them is."""
    # bfloat16 beside float32 is an error under strict promotion, but meant here
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes, jnp.float32)
