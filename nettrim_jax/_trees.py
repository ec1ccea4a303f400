"""Trees of arrays: which leaves are arrays, where they stand, what is known of them.

Knows pytrees only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from nettrim_jax.typing import Array, ArrayLike, LeafPath, Params

STATIC: Any = {"static": True}  # of a record's field: configuration, not an array


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the params is an array rather than, say, a function."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def known(array: ArrayLike) -> bool:
    """Whether the values can be looked at, that is, are not being traced."""
    return not isinstance(array, jax.core.Tracer)


def path_of(keys: Any) -> LeafPath:
    """The path of a leaf in words, ``"params/Dense_0/kernel"``; empty of a bare one."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def paths_of(params: Params) -> tuple[LeafPath, ...]:
    """The path of every array leaf; ``"params"`` where params are one array."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return tuple(path_of(keys) or "params" for keys, leaf in leaves if is_array(leaf))


def filled(tree: Any, everything: Sequence[Any], arrays: Sequence[Array]) -> Any:
    """The pytree with its array leaves replaced and the others as they are."""
    given = iter(arrays)
    leaves = [next(given) if is_array(leaf) else leaf for leaf in everything]
    return jax.tree.unflatten(tree, leaves)


def require_finite(name: str, tree: Any, error: type[Exception]) -> None:
    """Raises ``error`` with the place of the first NaN or infinity, where known."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not is_array(leaf) or not known(leaf):
            continue
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        with jax.ensure_compile_time_eval():  # the values are known within jit, too
            count = int(_not_finite(jnp.asarray(leaf)))
        if count:
            raise error(
                f"{name}: {count} of {leaf.size} values of "
                f"{path_of(keys) or 'the array'} are NaN or infinite; expected finite "
                "numbers. Nothing was pruned"
            )


@jax.jit
def _not_finite(array: Array) -> Array:
    return jnp.sum(~jnp.isfinite(array))
