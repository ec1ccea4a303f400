"""Trees of arrays: which leaves are arrays, their paths, and checks of their values.

Knows pytrees; knows no network.
"""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from nettrim_jax.typing import Array, ArrayLike, LeafPath, Params

# keys of what an object has, rather than a dict or a list
ATTRIBUTES = (jax.tree_util.GetAttrKey, jax.tree_util.FlattenedIndexKey)
SMALL = 2**16  # entries of an array that is copied to the host without need
STATIC: Any = {"static": True}  # marks fields that are configuration, not arrays


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the params is an array rather than, say, a function."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def known(array: ArrayLike) -> bool:
    """Whether the values are known, that is, are not being traced."""
    return not isinstance(array, jax.core.Tracer)


def path_of(keys: Any) -> LeafPath:
    """The path of a leaf, ``"params/Dense_0/kernel"``; empty if params are the leaf."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def paths_of(params: Params) -> tuple[LeafPath, ...]:
    """The path of every array leaf; ``"params"`` where params are one array."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return tuple(path_of(keys) or "params" for keys, leaf in leaves if is_array(leaf))


def boxes_of(params: Params) -> tuple[LeafPath, ...]:
    """For every array leaf, the path of its box, or its own path if it has none.

    A box is an object with nothing but this array, such as a variable of Flax: of
    ``"dense/kernel/value"`` it is ``"dense/kernel"``.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    inside = collections.Counter(keys[:-1] for keys, _ in leaves)

    def box(keys: Any) -> Any:
        attribute = bool(keys) and isinstance(keys[-1], ATTRIBUTES)
        return keys[:-1] if attribute and inside[keys[:-1]] == 1 else keys

    return tuple(
        path_of(box(keys)) or path_of(keys) for keys, leaf in leaves if is_array(leaf)
    )


class Filler:
    """Makes a pytree like a given one with other arrays; other leaves stay.

    Fillers whose trees differ in arrays only are equal static arguments of ``jax.jit``.

    Args:
      params: a pytree.
    """

    def __init__(self, params: Params):
        leaves, self.tree = jax.tree.flatten(params)
        self.rest = tuple(None if is_array(leaf) else (leaf,) for leaf in leaves)

    def __call__(self, arrays: Sequence[Array]) -> Params:
        """The pytree with these arrays."""
        given = iter(arrays)
        leaves = [next(given) if one is None else one[0] for one in self.rest]
        return jax.tree.unflatten(self.tree, leaves)

    def __hash__(self) -> int:
        return hash(self.tree)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Filler)
            and self.tree == other.tree
            and all(map(_same, self.rest, other.rest))
        )


def _same(one: tuple | None, other: tuple | None) -> bool:
    if one is None or other is None:
        return one is other
    return one[0] is other[0]


def infinite(name: str, tree: Any, error: type[Exception]) -> dict[int, str]:
    """The arrays with infinities, which may be meant, as in a mask of attention.

    Returns:
      What is to say of each, by its position among the arrays.

    Raises:
      error: an array has a NaN; the error names the first such array.
    """
    found = {}
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = ((keys, leaf) for keys, leaf in leaves if is_array(leaf))
    for at, (keys, leaf) in enumerate(arrays):
        if not known(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        count = leaf.size - _count(np.isfinite, leaf)
        if not count:
            continue
        found[at] = (
            f"{name}: {count} of {leaf.size} values of "
            f"{path_of(keys) or 'the array'} are NaN or infinite; expected finite "
            "numbers"
        )
        if _count(np.isnan, leaf):
            raise error(f"{found[at]}. Nothing was pruned")
    return found


def with_infinities(arrays: Sequence[ArrayLike]) -> list[int]:
    """The positions of those of some constants that have infinities.

    Large ones on a device are not looked at, which would take a compilation.
    """
    return [
        at
        for at, array in enumerate(arrays)
        if jnp.issubdtype(jnp.result_type(array), jnp.floating)
        and known(array)
        and (on_host(array) or np.size(array) <= SMALL)
        and np.isinf(np.asarray(array)).any()
    ]


def require_alive(name: str, tree: Any, error: type[Exception]) -> None:
    """Raises ``error`` with the path of the first array that was deleted."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and known(leaf) and leaf.is_deleted():
            raise error(
                f"{name}: {path_of(keys) or 'the array'} was deleted: it was donated "
                "to a program (donate_argnums=), or .delete() was called; give arrays "
                "that still exist, such as what that program returned"
            )


def on_host(array: ArrayLike) -> bool:
    """Whether the values are known, and lie where NumPy reads them without a copy."""
    if isinstance(array, np.ndarray):
        return True
    if not isinstance(array, jax.Array) or not known(array):
        return False
    devices = list(array.devices())
    return len(devices) == 1 and devices[0].platform == "cpu"


def from_host(tree: Any, like: ArrayLike) -> Any:
    """Arrays of NumPy as arrays of JAX, beside an array that lies :func:`on_host`.

    ``jax.numpy.asarray`` would compile a program for each shape.
    """
    device = None
    if isinstance(like, jax.Array) and on_host(like):
        device = next(iter(like.devices()))
    with jax.default_device(device):
        return jax.device_put(tree)


def _count(function: np.ufunc, array: ArrayLike) -> int:
    """The number of entries for which a function of NumPy is true."""
    # NumPy needs no compilation, which would take longer than the sum
    if on_host(array):
        return int(np.sum(function(np.asarray(array))))
    with jax.ensure_compile_time_eval():  # the values are known within jit, too
        return int(jnp.sum(getattr(jnp, function.__name__)(jnp.asarray(array))))
