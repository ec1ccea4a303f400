"""The state of a training under a mask, and what can be read of it.

Knows trees of arrays; knows no schedule and no optimiser.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._trees import known
from nettrim_jax.results import MethodError, ParamsError
from nettrim_jax.training.leaves import Flat, flatten, hidden
from nettrim_jax.typing import Array, Params


class SparseState(NamedTuple):
    """The state of :func:`nettrim_jax.train_sparse`.

    Attributes:
      count: number of updates so far, int32.
      mask: bool, a tree like the params; True for all weights of other leaves.
      key: data of the key that random choices come from.
      inner: the state of the optimiser within.
      movement: minus the sum of weight times gradient, where a schedule asks for it.
    """

    count: Array
    mask: Params
    key: Array
    inner: Any
    movement: Any = ()


def counted(count: Array) -> Array:
    """The next number of updates, which stays where it would overflow."""
    most = jnp.iinfo(count.dtype).max
    return jnp.where(count < most, count + 1, most).astype(count.dtype)


def fresh(state: Any, flat: Flat, changed: Sequence[Any]) -> Any:
    """An optimiser's state with zeros for weights that went or came.

    A leaf of the state belongs to the param on whose path its own path ends. Leaves of
    another shape, such as factored moments, stay: they are of whole rows or columns.

    Args:
      state: the state.
      flat: the params.
      changed: bool, for each leaf of the params; None where nothing can change.
    """
    of = {keys: at for at, keys in enumerate(flat.keys)}

    def clean(keys: tuple, leaf: Any) -> Any:
        ends = (keys[i:] for i in range(len(keys) + 1))
        at = next((of[end] for end in ends if end in of), None)
        moved = None if at is None else changed[at]
        if moved is None or getattr(leaf, "shape", None) != moved.shape:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jnp.where(moved, jnp.zeros_like(leaf), leaf)

    return jax.tree_util.tree_map_with_path(clean, state)


def mask_of(opt_state: Any) -> Params:
    """The mask in the state of an optimiser that has :func:`train_sparse` in it.

    It is found within ``optax.chain``, ``optax.MultiSteps``, ``optax.multi_transform``,
    ``optax.inject_hyperparams`` and whatever else keeps states in its own.

    Args:
      opt_state: what ``init`` or ``update`` of the optimiser returned.

    Returns:
      Bool, a tree like the params: True where a weight is on, and for all weights
      without a schedule. Leaves that no schedule sees, as within
      ``optax.multi_transform``, are what optax puts in their place.

    Raises:
      MethodError: there is no such state, or two that do not fit each other.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import nettrim_jax as nt
      >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> regrow = nt.Regrow(nt.Sparsity(0.5), every=10, end=100)
      >>> tx = optax.chain(optax.clip(1.0), nt.train_sparse(optax.adam(0.1), regrow))
      >>> nt.mask_of(tx.init(params))["w"].tolist()
      [[False, False], [True, True]]
    """

    def ours(node: Any) -> bool:
        return isinstance(node, SparseState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=ours) if ours(node)]
    if not found:
        raise MethodError(
            "mask_of: found no state of nettrim_jax.train_sparse; give what "
            "optimizer.init or optimizer.update returned (a checkpoint that was "
            "restored without a target holds plain dicts, not states; keep_sparse has "
            "no state, its mask is the one it was given, such as pruned.mask)"
        )
    mask = found[0].mask
    for other in found[1:]:
        try:
            mask = jax.tree.map(_both, mask, other.mask, is_leaf=hidden)
        except ValueError as error:
            raise MethodError(
                "mask_of: found states of several trees of params; give the state of "
                f"one of them ({error})"
            ) from None
    return mask


def _both(one: Any, other: Any) -> Any:
    if hidden(one):
        return other
    return one if hidden(other) else one & other


def check_sparse(params: Params, opt_state: Any) -> None:
    """Raises an error if a weight is not zero that the mask removes.

    So it is where a transformation follows :func:`train_sparse` in a chain, such as one
    that scales or averages updates, and before the first step.

    Args:
      params: the params after a step.
      opt_state: the optimiser's state after that step.

    Raises:
      ParamsError: a removed weight is not zero; the error names its leaf. Or the params
        are not those of the state.
      MethodError: the state has no mask, or values are traced by JAX.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import nettrim_jax as nt
      >>> params = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> rounds = nt.Rounds(nt.Sparsity(0.5), starts=(0,))
      >>> tx = optax.chain(nt.train_sparse(optax.sgd(0.1), rounds), optax.scale(0.5))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> nt.check_sparse(optax.apply_updates(params, updates), state)
      Traceback (most recent call last):
      nettrim_jax.results.ParamsError: check_sparse: params: 2 of 2 removed weights ...
    """
    flat = flatten(params)
    try:
        masks = flat.like(mask_of(opt_state))
    except ValueError:
        masks = jax.tree.leaves(mask_of(opt_state), is_leaf=hidden)
    if len(masks) != len(flat.leaves):
        raise ParamsError(
            f"check_sparse: expected the {len(masks)} leaves that the optimiser's "
            f"params have, got {len(flat.leaves)}"
        )
    for path, leaf, mask in zip(flat.paths, flat.leaves, masks, strict=True):
        if hidden(mask) or hidden(leaf):
            continue
        if not (known(leaf) and known(mask)):
            raise MethodError(
                "check_sparse: the values are being traced by JAX; call it outside of "
                "jax.jit"
            )
        if leaf.shape != mask.shape:
            raise ParamsError(
                f"check_sparse: {path}: expected the shape {list(mask.shape)} of its "
                f"mask, got {list(leaf.shape)}"
            )
        off = ~jnp.asarray(mask)
        left = int(jnp.sum(off & (jnp.asarray(leaf) != 0)))
        if left:
            raise ParamsError(
                f"check_sparse: {path}: {left} of {int(jnp.sum(off))} removed weights "
                "are not zero; let nettrim_jax.train_sparse be the last that changes "
                "updates, as in optax.chain(optax.clip(1.0), train_sparse(...)), and "
                "look after a step"
            )
