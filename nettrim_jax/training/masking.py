"""Fine-tuning after a pruning: optimisers that leave zeros zero.

optax is imported only where :func:`keep_sparse` is called.
Knows optax and trees of arrays; knows no solver.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nettrim_jax import _sharding
from nettrim_jax._trees import path_of, require_alive
from nettrim_jax.results import MethodError, ParamsError
from nettrim_jax.training.leaves import hidden
from nettrim_jax.typing import Array, Params

if TYPE_CHECKING:
    import optax


def keep_sparse(
    optimizer: "optax.GradientTransformation", mask: Params
) -> "optax.GradientTransformationExtraArgs":
    r"""Wraps an optimiser so that removed weights are zero after every step.

    .. math::
        W \leftarrow W + M \circ \Delta(M \circ \nabla) - (1 - M) \circ W

    The optimiser sees zero gradients of removed weights, so that its moments are zero
    there, and its updates of them (momentum, decay, noise) are replaced. The result
    works as any optimiser does: within ``optax.multi_transform`` or
    ``optax.MultiSteps``, on sharded params, and last in an ``optax.chain``.

    Args:
      optimizer: any transformation of optax.
      mask: a tree like the params; zero or False where weights stay zero. Leaves that
        are not arrays are ignored, as in ``Pruned.mask``.

    Returns:
      The optimiser; its ``update`` needs ``params``.

    Raises:
      MethodError: ``optimizer`` is no transformation of optax.
      ParamsError: a mask's shape is not that of its param, or ``params`` are missing.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import nettrim_jax as nt
      >>> params, grads = jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0])
      >>> optimizer = nt.keep_sparse(optax.sgd(0.5), params != 0)
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates).tolist()
      [0.0, 1.5]
    """
    import optax

    require_optimizer("keep_sparse", optimizer)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Any:
        _check(params, mask)
        return inner.init(params)

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ParamsError(
                "keep_sparse: expected params, got None; call "
                "optimizer.update(grads, state, params)"
            )
        updates = jax.tree.map(gradient, updates, mask, is_leaf=hidden)
        updates, state = inner.update(updates, state, params, **extra)
        return jax.tree.map(answer, updates, mask, params, is_leaf=hidden), state

    return optax.GradientTransformationExtraArgs(init, update)


def require_optimizer(caller: str, optimizer: Any) -> None:
    """Raises MethodError unless it is a transformation of optax."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise MethodError(
            f"{caller}({optimizer!r}): expected an optimiser of optax, such as "
            "optax.adam(1e-3)"
        )


def gradient(g: Any, keep: Any) -> Any:
    """A gradient with zeros for weights that are removed."""
    if hidden(g) or not hasattr(keep, "dtype"):
        return g
    return jnp.where(_kept(keep, g), g, jnp.zeros_like(g))


def answer(u: Any, keep: Any, p: Any) -> Any:
    """An update after which weights that are removed are zero."""
    if hidden(u) or not hasattr(keep, "dtype"):
        return u
    # in the wider dtype, since a rounded step would not end at zero
    dtype = jnp.promote_types(u.dtype, p.dtype)
    return jnp.where(_kept(keep, u), u.astype(dtype), -p.astype(dtype))


def _kept(keep: Any, like: Any) -> Array:
    return _sharding.beside(jnp.asarray(keep).astype(bool), like)


def _check(params: Params, mask: Params) -> None:
    require_alive("keep_sparse", mask, ParamsError)

    def check(path: Any, p: Array, keep: Any) -> None:
        if hidden(p) or not hasattr(p, "dtype"):
            return
        if getattr(keep, "shape", None) == p.shape:
            return
        where = path_of(path)
        got = list(keep.shape) if hasattr(keep, "shape") else repr(keep)
        raise ParamsError(
            f"keep_sparse: {where}: expected a mask of shape {list(p.shape)}, got "
            f"{got}; give the mask that nettrim_jax.prune returned"
        )

    try:
        jax.tree_util.tree_map_with_path(check, params, mask, is_leaf=hidden)
    except ParamsError:
        raise
    except ValueError as error:
        raise ParamsError(
            f"keep_sparse: expected a mask of the params' tree, such as "
            f"nettrim_jax.prune returns for them; {error}"
        ) from None
