"""The network as the user gave it: ``apply_fn`` and the arrays of its params.

Knows trees of arrays; knows no layers.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import Filler, infinite, is_array, known, require_alive
from nettrim_jax.results import ParamsError
from nettrim_jax.typing import ApplyFn, Array, Params


class Model:
    """Params and the function that runs them.

    Args:
      params: a pytree; leaves that are no arrays stay as they are.
      apply_fn: the network.

    Raises:
      ParamsError: a value in the params is not a number, or an array was deleted.
    """

    def __init__(self, params: Params, apply_fn: ApplyFn):
        require_alive("params", params, ParamsError)
        # of the arrays with infinities, by their position
        self.infinite = infinite("params", params, ParamsError)
        self.params, self.apply_fn = params, apply_fn
        self.filler = Filler(params)

    @functools.cached_property
    def leaves(self) -> list[Array]:
        """The arrays among the params' leaves."""
        leaves = jax.tree.leaves(self.params)
        return [jnp.asarray(leaf) for leaf in leaves if is_array(leaf)]

    def fill(self, leaves: Sequence[Array]) -> Params:
        """The params with other arrays."""
        return self.filler(leaves)

    def give(self, leaves: Sequence[Array]) -> Params:
        """The params with new values, in the dtypes in which they were given.

        JAX computes with NumPy's float64 in float32 unless told otherwise; an entry
        that did not change has the value that was given.
        """
        given = [leaf for leaf in jax.tree.leaves(self.params) if is_array(leaf)]
        each = zip(given, self.leaves, leaves, strict=True)
        return self.filler([_as_given(*three) for three in each])


def _as_given(given: Any, old: Array, new: Array) -> Any:
    if new.dtype == given.dtype or not known(new):
        return new
    if new is old:
        return given
    values = np.asarray(new)
    return np.where(values == np.asarray(old), given, values.astype(given.dtype))
