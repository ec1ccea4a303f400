"""``connection_cost``: a cost on connections, as the prox of a penalty after each step.

optax is imported only where :func:`connection_cost` is called.
Knows penalties and trees of arrays; knows no solver.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax._trees import known
from nettrim_jax._values import real
from nettrim_jax.convex.entrywise import L1
from nettrim_jax.convex.penalties import is_penalty
from nettrim_jax.results import MethodError, ParamsError
from nettrim_jax.training import leaves as leaves_
from nettrim_jax.training.leaves import Flat, Place, flatten, hidden
from nettrim_jax.training.state import counted
from nettrim_jax.typing import Array, Params, wide

if TYPE_CHECKING:
    import optax

CALLER = "connection_cost"


class CostState(NamedTuple):
    """The state of :func:`nettrim_jax.connection_cost`: the number of updates."""

    count: Array


def connection_cost(
    strength: Any,
    learning_rate: Any,
    penalty: Any = L1(),  # noqa: B008
    layers: Any = None,
) -> "optax.GradientTransformationExtraArgs":
    r"""A cost on connections, last in a chain: a step of proximal gradient descent.

    .. math:: W \leftarrow \operatorname{prox}_{\eta \lambda g} (W + \Delta)

    with the updates :math:`\Delta` of what comes before it, the learning rate
    :math:`\eta`, the strength :math:`\lambda` and the penalty :math:`g`. Unlike a
    penalty in the loss, whose gradients an optimiser rescales, it makes weights exactly
    zero, and they may come back. (Clune, Mouret and Lipson, 2013, evolve networks under
    such a cost.)

    Penalties of groups make whole inputs, units or channels zero, which
    :func:`nettrim_jax.shrink` then takes out.

    Args:
      strength: :math:`\lambda`, at least 0; a number, or a schedule of optax, a
        function of the number of updates.
      learning_rate: :math:`\eta`, that of the optimiser before it; a number or such a
        schedule.
      penalty: :math:`g` of one layer's matrix, the sum over its lanes.
      layers: as for :func:`train_sparse`; groups ``"channels"`` need it.

    Returns:
      The transformation; its ``update`` needs ``params``.

    Raises:
      MethodError: an argument is of another kind, or, when ``init`` is called, the
        penalty does not fit a layer.
      ParamsError: ``layers`` were listed for other params, or ``params`` are missing.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import nettrim_jax as nt
      >>> params = jnp.array([[1.0, 0.1], [-0.1, -1.0]])
      >>> tx = optax.chain(optax.sgd(0.5), nt.connection_cost(0.4, learning_rate=0.5))
      >>> updates, _ = tx.update(jnp.zeros((2, 2)), tx.init(params), params)
      >>> [round(float(w), 2) for w in optax.apply_updates(params, updates).ravel()]
      [0.8, 0.0, 0.0, -0.8]
    """
    import optax

    for name, value in {"strength": strength, "learning_rate": learning_rate}.items():
        _check(name, value)
    if not is_penalty(penalty):
        raise MethodError(
            f"{CALLER}(penalty={penalty!r}): expected a penalty, as nettrim_jax.L1()"
        )
    if layers is not None:
        leaves_.check_layers(layers, CALLER)
    plans: dict[Any, list[tuple[Place, Any]]] = {}

    def plan_of(flat: Flat) -> list[tuple[Place, Any]]:
        if flat.key not in plans:
            spots = leaves_.places(flat, layers, CALLER)
            plans[flat.key] = [(place, _fitted(penalty, place)) for place in spots]
        return plans[flat.key]

    def init(params: Params) -> CostState:
        plan_of(flatten(params))
        return CostState(jnp.zeros((), np.int32))

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, CostState]:
        del extra
        if params is None:
            raise ParamsError(
                f"{CALLER}: expected params, got None; call "
                "optimizer.update(grads, state, params)"
            )
        flat = flatten(params)
        steps = flat.like(updates)
        size = _at(strength, state.count) * _at(learning_rate, state.count)
        moved = {
            place.leaf: _wide(flat.leaves[place.leaf], steps[place.leaf])
            for place, _ in plan_of(flat)
            if not hidden(steps[place.leaf])
        }

        def shrunk(given: tuple[dict[int, Array], Array]) -> dict[int, Array]:
            out, size = dict(given[0]), given[1]
            for place, fitted in plan_of(flat):
                if place.leaf in out:
                    out[place.leaf] = _prox(place, fitted, out[place.leaf], size)
            return out

        for at, new in _sharding.automatic(shrunk, (moved, size), moved).items():
            steps[at] = _step(new, steps[at], flat.leaves[at])
        return flat.tree.unflatten(steps), CostState(counted(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _check(name: str, value: Any) -> None:
    """Raises MethodError unless it is a number of at least 0, or a schedule."""
    if callable(value):
        return
    good = real(value) and np.ndim(value) == 0
    if not good or (known(value) and not 0 <= float(value) < np.inf):
        raise MethodError(
            f"{CALLER}({name}={value!r}): expected a number of at least 0, or a "
            "schedule of optax"
        )


def _at(value: Any, count: Array) -> Array:
    return jnp.asarray(value(count) if callable(value) else value, np.float32)


def _fitted(penalty: Any, place: Place) -> Any:
    """The penalty for the matrices of a leaf; raises MethodError if it does not fit."""
    channels = getattr(penalty, "of_channels", None)
    if channels is not None and place.matrices.channels is not None:
        penalty = channels(place.matrices.channels)
    wanted = penalty.misfit(place.matrices.shape[2:])
    if wanted:
        raise MethodError(
            f"{CALLER}: {place.matrices.path}: expected {wanted}; give layers="
            "nettrim_jax.sites(params, apply_fn, batch) with exclude= to leave it out"
        )
    return penalty


def _wide(p: Array, u: Array) -> Array:
    """The weights after the step."""
    dtype = wide(p.dtype, u.dtype)
    return p.astype(dtype) + u.astype(dtype)


def _prox(place: Place, penalty: Any, leaf: Array, size: Array) -> Array:
    """A leaf after the prox of its matrices."""
    matrices = place.matrices
    W = matrices.read(leaf, plain=True)
    step = jnp.broadcast_to(size.astype(W.dtype), (1, 1))
    lanes = W.reshape(-1, *W.shape[2:])
    new = jax.vmap(lambda lane: penalty.prox(lane, step))(lanes)
    # a prox of step zero is the identity, which a quotient by the step would lose
    new = jnp.where(size > 0, new, lanes)
    return matrices.write(leaf, new.reshape(W.shape), plain=True)


def _step(new: Array, u: Array, p: Array) -> Array:
    """The update to these weights, to exact zeros where they are zero."""
    dtype = jnp.promote_types(u.dtype, p.dtype)
    step = (new - p.astype(new.dtype)).astype(dtype)
    return jnp.where(new == 0, -p.astype(dtype), step)
