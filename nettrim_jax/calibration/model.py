"""The network as the user gave it: ``apply_fn`` and the arrays of its params.

Knows trees of arrays; knows no layers.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
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
        _sharding.require_free("params", params, ParamsError)
        # of the arrays with infinities, by their position
        self.infinite = infinite("params", params, ParamsError)
        self.params, self.apply_fn = params, apply_fn
        self.filler = Filler(params)

    @functools.cached_property
    def given(self) -> list[Array]:
        """The arrays among the params' leaves."""
        leaves = jax.tree.leaves(self.params)
        return [jnp.asarray(leaf) for leaf in leaves if is_array(leaf)]

    @functools.cached_property
    def leaves(self) -> list[Array]:
        """These arrays, without types of shardings."""
        return _sharding.plain(self.given)

    @property
    def traced(self) -> bool:
        """Whether JAX traces any of the arrays."""
        return not all(map(known, self.leaves))

    def fill(self, leaves: Sequence[Array]) -> Params:
        """The params with other arrays, each where the given one lies."""
        return self.filler(list(map(_sharding.like, leaves, self.given)))

    def give(self, leaves: Sequence[Array]) -> Params:
        """The params with new values, in the dtypes in which they were given.

        JAX computes with NumPy's float64 in float32 unless told otherwise; an entry
        that did not change has the value that was given.
        """
        raw = [leaf for leaf in jax.tree.leaves(self.params) if is_array(leaf)]
        each = zip(raw, self.given, self.leaves, leaves, strict=True)
        return self.filler([_as_given(*four) for four in each])


def _as_given(raw: Any, given: Array, old: Array, new: Array) -> Any:
    if new.dtype == raw.dtype or not known(new):
        return _sharding.like(new, given)
    if new is old:
        return raw
    values = np.asarray(new)
    return np.where(values == np.asarray(old), raw, values.astype(raw.dtype))
