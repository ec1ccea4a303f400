"""``train_sparse``: an optimiser under which a mask changes by a schedule.

optax is imported only where :func:`train_sparse` is called.
Knows optax and masks; knows no particular schedule.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._trees import is_array
from nettrim_jax._values import whole
from nettrim_jax.results import MethodError, ParamsError
from nettrim_jax.training import leaves as leaves_
from nettrim_jax.training.leaves import flatten
from nettrim_jax.training.masking import answer, gradient, require_optimizer
from nettrim_jax.training.masks import Plan, Step, table
from nettrim_jax.training.state import SparseState, counted, fresh
from nettrim_jax.typing import Params

if TYPE_CHECKING:
    import optax


def train_sparse(
    optimizer: "optax.GradientTransformation",
    schedule: Any,
    layers: Any = None,
    seed: int = 0,
) -> "optax.GradientTransformationExtraArgs":
    r"""Wraps an optimiser so that weights go, and come back, by a schedule.

    In each update the optimiser sees zero gradients of weights that are off. Where the
    schedule is due, a new mask is chosen from the weights that the step would leave;
    schedules that let weights grow see the gradients of all. The optimiser's moments of
    weights that went or came become zero, and so do the weights that are off, exactly,
    after every step. The mask is in the optimiser's state, so checkpoints have it, and
    it is sharded as the params are.

    The result works as any optimiser does: under ``jax.jit`` and ``jax.lax.scan``,
    within ``optax.multi_transform``, ``optax.MultiSteps`` and
    ``optax.inject_hyperparams``, around ``optax.apply_if_finite``. What changes updates
    after it, as ``optax.chain(train_sparse(...), optax.scale(0.5))`` does, leaves
    weights other than zero: it has to be the last of a chain, but for
    :func:`connection_cost`. :func:`check_sparse` tells.

    Args:
      optimizer: any transformation of optax.
      schedule: :class:`Gradual`, :class:`Rounds`, :class:`Regrow`, :class:`Threshold`
        or :class:`DenseSparseDense`; or a dict from regular expressions to a schedule
        or None. ``re.search`` on a leaf's path, first match wins; a leaf that nothing
        matches stays dense.
      layers: ``nettrim_jax.sites(params, apply_fn, batch)``: patterns act on the layers
        that it found, as :func:`prune` sees them, convolutions as matrices and each
        step of a stack as a layer of its own, and leave other leaves alone. With None
        each floating leaf of two or more dimensions is one layer, its last two
        dimensions ``[..., d_in, d_out]``.
      seed: of random choices.

    Returns:
      The optimiser; its ``update`` needs ``params``, and gradients of all weights. Its
      state is a :class:`nettrim_jax.training.SparseState`.

    Raises:
      MethodError: an argument is of another kind, or, when ``init`` is called, an
        expression matches no leaf or a pattern does not fit a layer.
      ParamsError: ``layers`` were listed for other params, or ``params`` are missing.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import nettrim_jax as nt
      >>> params = {"w": jnp.arange(1.0, 9.0).reshape(4, 2), "b": jnp.ones(2)}
      >>> schedule = nt.Gradual(nt.Sparsity(0.5), end=4, every=2)
      >>> tx = nt.train_sparse(optax.sgd(0.1, momentum=0.9), schedule)
      >>> state, left = tx.init(params), []
      >>> for _ in range(4):
      ...     grads = jax.tree.map(jnp.ones_like, params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     left.append(int((params["w"] != 0).sum()))
      >>> left
      [8, 4, 4, 4]
    """
    import optax

    require_optimizer("train_sparse", optimizer)
    table(schedule)
    if layers is not None:
        leaves_.check_layers(layers, "train_sparse")
    if not whole(seed):
        raise MethodError(f"train_sparse(seed={seed!r}): expected an integer")
    inner = optax.with_extra_args_support(optimizer)
    plans: dict[Any, Plan] = {}

    def plan_of(flat: leaves_.Flat) -> Plan:
        if flat.key not in plans:
            plans[flat.key] = Plan(flat, schedule, layers)
        return plans[flat.key]

    def init(params: Params) -> SparseState:
        flat = flatten(params)
        plan = plan_of(flat)
        moved = plan.moved
        movement = [
            jnp.zeros_like(leaf, dtype=np.float32) if at in moved else None
            for at, leaf in enumerate(flat.leaves)
        ]
        return SparseState(
            count=jnp.zeros((), np.int32),
            mask=flat.tree.unflatten(plan.first(flat.leaves)),
            key=jax.random.key_data(jax.random.key(seed)),
            inner=inner.init(params),
            movement=flat.tree.unflatten(movement) if moved else (),
        )

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, SparseState]:
        if params is None:
            raise ParamsError(
                "train_sparse: expected params, got None; call "
                "optimizer.update(grads, state, params)"
            )
        flat = flatten(params)
        plan = plan_of(flat)
        grads, masks = flat.like(updates), flat.like(state.mask)
        movement = _moved(flat, grads, state.movement)
        seen = flat.tree.unflatten(map(gradient, grads, masks))
        updates, inner_state = inner.update(seen, state.inner, params, **extra)
        steps = list(map(answer, flat.like(updates), masks, flat.leaves))
        count = counted(state.count)
        given = Step(
            number=count,
            weights=plan.only(_after(flat.leaves, steps)),
            before=plan.only(flat.leaves),
            gradients=plan.only(grads),
            masks=plan.only(masks),
            movement=plan.only(movement),
            key=state.key,
        )
        chosen, starts = plan.choose(given)
        changed = [None] * len(masks)
        for at in plan.taken:
            new, old, p, u = chosen[at], masks[at], flat.leaves[at], steps[at]
            changed[at] = new ^ old
            if at in starts:
                start = starts[at].astype(u.dtype) - p.astype(u.dtype)
                u = jnp.where(new & ~old, start, u)
            steps[at], masks[at] = answer(u, new, p), new
        new_state = SparseState(
            count,
            flat.tree.unflatten(masks),
            state.key,
            fresh(inner_state, flat, changed),
            flat.tree.unflatten(movement) if state.movement != () else (),
        )
        return flat.tree.unflatten(steps), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _moved(flat: leaves_.Flat, grads: list[Any], movement: Any) -> list[Any]:
    """The movement of each leaf after a step; None where it is not asked for."""
    if isinstance(movement, tuple) and not movement:
        return [None] * len(grads)

    def more(old: Any, w: Any, g: Any) -> Any:
        if old is None:
            return None
        effect = w.astype(old.dtype) * g.astype(old.dtype)
        return old - jnp.where(jnp.isfinite(effect), effect, 0)

    return list(map(more, flat.like(movement), flat.leaves, grads))


def _after(leaves: list[Any], steps: list[Any]) -> list[Any]:
    """The params after a step, as ``optax.apply_updates`` makes them."""

    def moved(p: Any, u: Any) -> Any:
        if not (is_array(p) and is_array(u)):
            return None
        return (p.astype(u.dtype) + u).astype(p.dtype)

    return list(map(moved, leaves, steps))
