"""Upper bounds on operator norms: of matrices, and of convolutions by their kernels.

The Frobenius norm of a power of the Gram matrix is never less than its spectral norm.
Every squaring halves the logarithm of the ratio of their roots.

Knows arrays; knows no operations.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import matmul
from nettrim_jax.typing import Array

SQUARINGS = 8
# points of the grid per degree of a convolution's symbol, unless the torus has fewer
POINTS = 16


def matrix_norm(A: Array, squarings: int = SQUARINGS) -> Array:
    r"""An upper bound on the largest singular value, for any number of squarings.

    .. math::
        \|A\|_2 \le \|(A^H A)^{2^t}\|_F^{1 / 2^{t+1}} \le r^{1 / 2^{t+2}} \|A\|_2

    with ``r`` the rank. (Gram iteration; Delattre et al., 2023.)

    Args:
      A: real or complex, ``[..., m, n]``.
      squarings: ``t``.

    Returns:
      The bounds, ``[...]``, plus one rounding for each row and column.
    """
    m, n = A.shape[-2:]
    if 0 in A.shape:
        return jnp.zeros(A.shape[:-2], A.real.dtype)
    if m < n:
        A = jnp.swapaxes(A, -1, -2)
    size = _frobenius(A)
    A = _over(A, size)
    gram = matmul(jnp.swapaxes(A, -1, -2).conj(), A)

    def square(gram: Array, _: None) -> tuple[Array, Array]:
        f = _frobenius(gram)
        gram = _over(gram, f)
        return matmul(gram, gram), f

    gram, factors = jax.lax.scan(square, gram, length=squarings)
    factors = jnp.concatenate([factors, _frobenius(gram)[None]])
    roots = jnp.asarray([0.5**t for t in range(1, squarings + 2)], factors.dtype)
    roots = roots.reshape(-1, *[1] * (factors.ndim - 1))
    # a root of zero has no derivative, and only a zero matrix has a zero factor
    factors = jnp.where(factors > 0, factors, 1) ** roots
    return _more(A, size) * size * jnp.prod(factors, axis=0)


def frobenius_norm(A: Array) -> Array:
    """The Frobenius norms, ``[...]``, plus a rounding for each row and column."""
    size = _frobenius(A)
    return _more(A, size) * size


def convolution_norm(
    kernel: Array,
    groups: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    spread: Sequence[int],
) -> Array:
    r"""An upper bound on the norm of a zero-padded convolution.

    Padding with zeros embeds the input in a torus of its padded size, on which the
    convolution is circular. So its norm is at most

    .. math::
        \max_\omega \|K(\omega)\|_2, \qquad
        K(\omega) = \sum_j k_j e^{i \langle \omega, j \rangle}
        \quad [c_{in}, c_{out}],

    over the torus's frequencies (Sedghi et al., 2019). A stride :math:`s`, or
    :math:`s - 1` zeros between the entries of the input, splits the kernel into
    :math:`s` kernels, each with every :math:`s`-th tap. On a large torus, a coarser
    grid of :math:`N` points per dimension stands for all frequencies:
    :math:`|u^H K w|^2` is a trigonometric polynomial of degree :math:`m`, the kernel's
    length less one, and exceeds its values on the grid at most
    :math:`1 / \cos(\pi m / N)` times (Ehlich and Zeller, 1964). Without zeros between
    the entries, a second bound is the norm of the kernel as a matrix of patches, times
    the root of the number of patches that can share an entry; the smaller is returned.

    Args:
      kernel: ``[*spatial, c_in / groups, c_out]``.
      groups: number of groups of features.
      sizes: sizes of the padded and spread input, per spatial dimension.
      strides: strides of the windows.
      dilation: dilation of the kernel.
      spread: dilation of the input, with ``spread - 1`` zeros between its entries.

    Returns:
      The bound, a scalar.
    """
    if 0 in kernel.shape:
        return jnp.zeros((), kernel.dtype)
    *lengths, c_in, c_out = kernel.shape
    symbol = kernel.reshape(*lengths, c_in, groups, c_out // groups)
    symbol = jnp.moveaxis(symbol, -2, 0)  # [groups, *spatial, c_in, c_out]
    patches = symbol.reshape(groups, -1, c_out // groups)
    coarser = 1.0
    for axis, (size, stride, step, zeros) in enumerate(
        zip(sizes, strides, dilation, spread, strict=True), 1
    ):
        if step == 1 and (stride == 1) != (zeros == 1):
            symbol = _phases(symbol, axis, stride * zeros, -2 if zeros == 1 else -1)
            size = -(-size // (stride * zeros))
        length = symbol.shape[axis]
        points = POINTS * (length - 1)
        if step == 1 and size <= points:
            points = size
        elif length > 1:
            coarser /= math.sqrt(math.cos(math.pi * (length - 1) / points))
        points = max(points, 1)
        # the kernel is real, so the other half of the frequencies is conjugate
        transform = jnp.fft.rfft if axis == 1 else jnp.fft.fft
        symbol = transform(symbol, points, axis=axis)
    bound = coarser * jnp.max(matrix_norm(symbol))
    if all(zeros == 1 for zeros in spread):
        seen = overlap(lengths, strides, dilation)
        matrix = math.sqrt(seen) * jnp.max(matrix_norm(patches))
        bound = jnp.minimum(bound, matrix)
    return bound


def _phases(symbol: Array, axis: int, count: int, into: int) -> Array:
    """Splits a kernel into every ``count``-th tap, joined to the channels ``into``."""
    pad = [(0, 0)] * symbol.ndim
    pad[axis] = (0, -symbol.shape[axis] % count)
    symbol = jnp.pad(symbol, pad)
    shape = list(symbol.shape)
    shape[axis : axis + 1] = [shape[axis] // count, count]
    symbol = jnp.moveaxis(symbol.reshape(shape), axis + 1, into - 1)
    at = symbol.ndim + into - 1
    return symbol.reshape(*symbol.shape[:at], -1, *symbol.shape[at + 2 :])


def overlap(
    lengths: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> int:
    """The largest number of windows that can share an entry."""
    return math.prod(
        min(length, -(-((length - 1) * step + 1) // stride))
        for length, stride, step in zip(lengths, strides, dilation, strict=True)
    )


def _more(A: Array, size: Array) -> float:
    return 1 + sum(A.shape[-2:]) * float(jnp.finfo(size.dtype).eps)


def _frobenius(A: Array) -> Array:
    # summed axis by axis: one long sum in float32 loses digits
    square = jnp.sum(jnp.sum(A.real**2 + A.imag**2, axis=-1), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _over(A: Array, size: Array) -> Array:
    size = jnp.where(size > 0, size, 1)[..., None, None]
    return A / jax.lax.convert_element_type(size, A.dtype)
