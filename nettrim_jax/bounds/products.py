"""Norms of JAX's matrix products and convolutions as maps of one operand.

Operations are brought into the form that ``spectral`` takes.
Knows operations; knows no layers.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from nettrim_jax.bounds import spectral
from nettrim_jax.tracing.jaxprs import Op
from nettrim_jax.typing import Array

Norm = Callable[[Op, int, Sequence[int], Array], Array]
LAYERS = ("dot_general", "conv_general_dilated")  # operations with known norms


def linear_known(op: Op, at: int) -> bool:
    """Whether a norm is known of this operation as a map of operand ``at``."""
    if op.name == "dot_general":
        return True
    return at == 0 and op.params["batch_group_count"] == 1


def norm(op: Op, at: int, shape: Sequence[int], w: Array) -> Array:
    """An upper bound on its norm as a map of operand ``at``, which has this shape."""
    if op.name == "dot_general":
        return jnp.max(spectral.matrix_norm(_lanes(op, 1 - at, w)), initial=0)
    return _convolution(op, shape, w)


def frobenius(op: Op, at: int, shape: Sequence[int], w: Array) -> Array:
    """The same by the Frobenius norm of ``w``; that of a convolution by its patches."""
    if op.name == "dot_general":
        return jnp.max(spectral.frobenius_norm(_lanes(op, 1 - at, w)), initial=0)
    p = op.params
    lengths = [w.shape[axis] for axis in p["dimension_numbers"].rhs_spec[2:]]
    flat = w.reshape(w.shape[0], math.prod(w.shape[1:]))
    seen = spectral.overlap(lengths, p["window_strides"], p["rhs_dilation"])
    return math.sqrt(seen) * spectral.frobenius_norm(flat)


def _lanes(op: Op, at: int, w: Array) -> Array:
    """Operand ``at`` as matrices, lanes first."""
    contract, batch = (sides[at] for sides in op.params["dimension_numbers"])
    free = [axis for axis in range(w.ndim) if axis not in (*contract, *batch)]
    shape = [math.prod(w.shape[i] for i in axes) for axes in (batch, contract, free)]
    return w.transpose(*batch, *contract, *free).reshape(shape)


def _convolution(op: Op, shape: Sequence[int], kernel: Array) -> Array:
    p = op.params
    numbers, spread = p["dimension_numbers"], p["lhs_dilation"]
    c_out, c_in, *spatial = numbers.rhs_spec
    sizes = [
        (shape[axis] - 1) * zeros + 1 + low + high
        for axis, zeros, (low, high) in zip(
            numbers.lhs_spec[2:], spread, p["padding"], strict=True
        )
    ]
    return spectral.convolution_norm(
        kernel.transpose(*spatial, c_in, c_out),
        p["feature_group_count"],
        sizes,
        p["window_strides"],
        p["rhs_dilation"],
        spread,
    )
