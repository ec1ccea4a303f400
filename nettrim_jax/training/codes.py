"""Fine-tuning of weights that share values: an optimiser that keeps them shared.

optax is imported only where :func:`keep_shared` is called.
Knows optax, codes and trees of arrays; knows no solver.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import is_array, known, on_host, path_of
from nettrim_jax.methods.codes import Codes
from nettrim_jax.results import ParamsError, made_here
from nettrim_jax.training.leaves import hidden
from nettrim_jax.training.masking import require_optimizer
from nettrim_jax.typing import Array, LeafPath, Params, wide

if TYPE_CHECKING:
    import optax


def keep_shared(
    optimizer: "optax.GradientTransformation", shared: Any
) -> "optax.GradientTransformationExtraArgs":
    r"""Wraps an optimiser so that weights that share a value still do after every step.

    .. math::
        c_v \leftarrow c_v + \Delta_v\Big(\sum_{k_{ij} = v} \nabla_{ij}\Big)

    The optimiser sees, at each weight, the sum of the gradients of all weights with
    this value, which is the derivative by the value (Han, Mao and Dally, 2016), and of
    its updates the mean is taken. Sums of float16 and bfloat16, and what the optimiser
    keeps of them, are float32; updates have the dtype of the gradients. Weights of zero
    stay exactly zero. Other leaves, such as biases, are the optimiser's own.

    Args:
      optimizer: any transformation of optax.
      shared: what :func:`share` returned, or its codes.

    Returns:
      The optimiser; its ``update`` needs ``params``, which start as the shared ones.

    Raises:
      MethodError: ``optimizer`` is no transformation of optax.
      ParamsError: the params are not those that share these values, or are missing.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import nettrim_jax as nt
      >>> w, x = jnp.array([[1.0], [1.1], [3.0]]), jnp.eye(3)
      >>> shared = nt.share(w, w, lambda w, x: x @ w, x, bits=1, held_out=0)
      >>> optimizer = nt.keep_shared(optax.sgd(0.1), shared)
      >>> grads = jnp.ones((3, 1))
      >>> state = optimizer.init(shared.params)
      >>> updates, _ = optimizer.update(grads, state, shared.params)
      >>> [round(float(u), 4) for u in updates[:, 0]]
      [-0.3, -0.3, -0.3]
    """
    import optax

    require_optimizer("keep_shared", optimizer)
    ours = made_here(shared, "codes")
    codes: Mapping[LeafPath, Codes] = shared.codes if ours else shared
    if not isinstance(codes, Mapping) or not all(
        isinstance(one, Codes) for one in codes.values()
    ):
        raise ParamsError(
            f"keep_shared: expected what share returned, or its codes, got "
            f"{type(shared).__name__}"
        )
    each = {path: _Places.of(one) for path, one in codes.items()}
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Any:
        _check(params, codes)
        return inner.init(_by_path(_widened, each, params))

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ParamsError(
                "keep_shared: expected params, got None; call "
                "optimizer.update(grads, state, params)"
            )
        sums = _by_path(_summed, each, updates)
        wider = _by_path(_widened, each, params)
        steps, state = inner.update(sums, state, wider, **extra)
        return _by_path(_alike, each, steps, params, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _by_path(function: Any, given: Mapping[LeafPath, Any], *trees: Any) -> Any:
    """A tree with the function of leaves whose path is given; others stay."""

    def one(keys: Any, leaf: Any, *others: Any) -> Any:
        mine = given.get(path_of(keys) or "params")
        if mine is None or hidden(leaf):
            return leaf
        return function(leaf, mine, *others)

    return jax.tree_util.tree_map_with_path(one, *trees, is_leaf=hidden)


class _Places(NamedTuple):
    """Which entries of a leaf share a value."""

    places: Any  # of the leaf's shape: from 1, or 0 where it has none
    zero: Any  # of the leaf's shape, bool: entries that stay zero
    members: Any  # [count], the number of entries with each value

    @classmethod
    def of(cls, codes: Codes) -> "_Places":
        """Those of a leaf's codes; entries of no layer are the optimiser's own."""
        places = codes.places()
        zero = (places == 0) & (codes.group >= 0)
        return cls(places, zero, codes.members())

    def sums(self, a: Array) -> Array:
        """The sum over the entries with each value, in a dtype wide enough."""
        a = a.astype(wide(a.dtype))
        return jnp.zeros(len(self.members), a.dtype).at[self.places].add(a)


def _widened(p: Array, _: _Places) -> Array:
    """A leaf in the dtype that sums of gradients, and the optimiser's state, have."""
    return p.astype(wide(p.dtype)) if p.dtype != wide(p.dtype) else p


def _summed(g: Array, mine: _Places) -> Array:
    """The sum of the gradients of all weights with a value, at each of them."""
    total = mine.sums(g)[mine.places]
    total = jnp.where(mine.places != 0, total, g.astype(total.dtype))
    return jnp.where(mine.zero, jnp.zeros_like(total), total)


def _alike(u: Array, mine: _Places, p: Array, g: Array) -> Array:
    """Updates after which values are shared, and zeros zero."""
    total = mine.sums(u)
    mean = (total / jnp.maximum(mine.members, 1).astype(total.dtype))[mine.places]
    # in the wider dtype, since a rounded step would not end at zero
    dtype = jnp.promote_types(g.dtype, p.dtype)
    new = jnp.where(mine.places != 0, mean, u.astype(mean.dtype)).astype(dtype)
    return jnp.where(mine.zero, -p.astype(dtype), new)


def _check(params: Params, codes: Mapping[LeafPath, Codes]) -> None:
    """Raises ParamsError if a leaf does not share the values of its codes."""
    missing = dict(codes)

    def check(keys: Any, p: Any) -> None:
        path = path_of(keys) or "params"
        one = missing.pop(path, None)
        if one is None or hidden(p):
            return
        if getattr(p, "shape", None) != one.codes.shape:
            got = list(p.shape) if is_array(p) else repr(p)
            raise ParamsError(
                f"keep_shared: {path}: expected the shape {list(one.codes.shape)} of "
                f"its codes, got {got}; give the params that share returned"
            )
        if not (on_host(p) and known(one.codes)):
            return
        mine, values = _Places.of(one), np.asarray(p)
        some = np.zeros(len(mine.members), values.dtype)
        some[mine.places] = values
        alike = (some[mine.places] == values) | (mine.places == 0)
        if not alike.all() or values[mine.zero].any():
            raise ParamsError(
                f"keep_shared: {path}: its weights do not share the values that its "
                "codes say; start from the params that share returned"
            )

    jax.tree_util.tree_map_with_path(check, params, is_leaf=hidden)
    if missing:
        raise ParamsError(
            f"keep_shared: the params have no leaf {', '.join(missing)}, of which "
            "there are codes; give a tree with the paths of those that share returned"
        )
