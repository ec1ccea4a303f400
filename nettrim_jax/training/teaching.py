"""A pruned network that is taught by the trained one.

Knows networks and their layers; knows no solver.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax._trees import is_array, paths_of
from nettrim_jax.calibration.minibatches import Minibatches, Piece
from nettrim_jax.calibration.model import Model
from nettrim_jax.calibration.outputs import moved
from nettrim_jax.calibration.responses import counted, layer_leaves, responses
from nettrim_jax.methods.refit import read
from nettrim_jax.results import MethodError, ParamsError, made_here, warn
from nettrim_jax.training.masking import require_optimizer
from nettrim_jax.training.recovery import (
    Recovered,
    RecoverReport,
    RecoverState,
    relative,
)
from nettrim_jax.training.steps import Leaves, Steps
from nettrim_jax.typing import ApplyFn, Array, Batch, LeafPath, Params

if TYPE_CHECKING:
    import optax

MATCH = ("output", "layers", "both")
RATE = 3e-3  # the first learning rate, unless an optimiser is given
CALL = "recover(pruned, params, apply_fn, batches)"
Also = str | Callable[[LeafPath], bool]


class Pair(NamedTuple):
    """The network that is trained, and the one that it is to answer as."""

    student: Model
    keeps: list[Array | np.ndarray]  # which entries of each array may be not zero
    mask: Params
    teacher: Model
    match: str


def pair_of(pruned: Any, params: Params, apply_fn: ApplyFn, match: str) -> Pair:
    """The two networks.

    Args:
      pruned: with params and a mask, or a smaller network with its own function.
      params: the trained params.
      apply_fn: the network.
      match: what is to be alike.

    Raises:
      MethodError: that cannot be compared.
      ParamsError: the two do not fit each other.
    """
    if match not in MATCH:
        raise MethodError(f"recover(match={match!r}): expected one of {MATCH}")
    teacher = Model(params, apply_fn)
    if match != "output" and _sharding.meshes_of(teacher.given):
        raise MethodError(
            f"recover(match={match!r}): the params lie on a mesh with explicit axes; "
            "take match='output'"
        )
    if made_here(pruned, "params", "kept"):  # of shrink or trim
        if match != "output":
            raise MethodError(
                f"recover(match={match!r}): the layers of a smaller network are others "
                "than those of the trained one; take match='output'"
            )
        student = Model(pruned.params, pruned.apply_fn)
        # a weight of zero was removed; a bias of zero may be one that has not moved
        keeps: list[Any] = [
            np.ones(a.shape, bool) if a.ndim < 2 else np.asarray(a) != 0
            for a in student.given
        ]
        return Pair(student, keeps, student.filler(keeps), teacher, match)
    if not made_here(pruned, "params", "mask"):
        raise ParamsError(
            f"recover: expected what prune, refit, shrink or trim returned, got "
            f"{type(pruned).__name__}; the order is {CALL}"
        )
    _require_like(params, pruned.params)
    keeps = read(pruned.params, pruned.mask, "recover", CALL)
    student = Model(pruned.params, apply_fn)
    return Pair(student, list(keeps), pruned.mask, teacher, match)


def _require_like(params: Params, pruned: Params) -> None:
    """Raises ParamsError unless the trained params are like the pruned ones."""
    both = (
        zip(paths_of(params), _arrays(params), strict=True),
        zip(paths_of(pruned), _arrays(pruned), strict=True),
    )
    got, wanted = ({p: f"{a.dtype} {list(a.shape)}" for p, a in one} for one in both)
    if got != wanted:
        path = next(p for p in [*wanted, *got] if got.get(p) != wanted.get(p))
        raise ParamsError(
            f"recover: params have {path} as {got.get(path, 'no array')}, and the "
            f"pruned ones as {wanted.get(path, 'no array')}; the order is {CALL}, with "
            "the params from before the pruning second"
        )


def _arrays(params: Params) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]


class Course(NamedTuple):
    """How the steps are made."""

    steps: int  # in all
    every: int  # steps between measurements
    until: int  # the step to end at
    optimizer: "optax.GradientTransformation | None"


def teach(
    pair: Pair,
    given: Minibatches,
    course: Course,
    *,
    also: Also | None,
    state: RecoverState | None,
    show: Callable[[int, str], None],
) -> Recovered:
    """Makes the steps, and returns the best params on the way.

    Args:
      pair: the networks.
      given: the batches.
      course: the steps.
      also: which arrays move beside layers and their biases.
      state: to go on from; None for a new start.
      show: is told the step, and the deviation.
    """
    places, own = _moving(pair, given.checks[0].batch, also), course.optimizer
    run = Steps(
        *(_loss(pair, places), _distance(pair, places)),
        _adam(course.steps) if own is None else _in_tree(own, pair, places),
        given.checks,
        leaves=[pair.student.given[k] for k in places],
        keeps=[pair.keeps[k] for k in places],
        fixed=(pair.student.given, pair.teacher.given),
        state=state,
    )
    for piece in given.after(run.step):
        if run.step >= course.until:
            break
        run.take(piece)
        measured = run.step % course.every == 0 or run.step == course.steps
        if measured and not run.measure():
            break
        show(run.step, f"deviation {run.curve[-1][1]:.3g}")
    else:
        if run.step < course.until:
            warn(
                f"recover: the iterator ended after {run.step} of {course.until} "
                "steps; give a loader that starts anew at each iter(), or fewer steps"
            )
    return _result(run, pair, places, course.steps)


def _moving(pair: Pair, batch: Batch, also: Also | None) -> list[int]:
    """The positions of the arrays that move."""
    chosen, paths = layer_leaves(pair.student, batch)
    if also is not None:
        asked = re.compile(also).search if isinstance(also, str) else also
        floats = [jnp.issubdtype(a.dtype, jnp.floating) for a in pair.student.given]
        more = {k for k, path in enumerate(paths) if floats[k] and asked(path)}
        if not more:
            raise MethodError(
                f"recover(also={also!r}): no floating array has such a path; the paths "
                f"are {', '.join(paths)}"
            )
        chosen |= more
    return sorted(chosen)


def _placed(pair: Pair, places: list[int], leaves: Leaves, fixed: Any) -> Leaves:
    """All arrays of the network that is trained."""
    every = list(fixed[0])
    for k, leaf in zip(places, leaves, strict=True):
        every[k] = leaf
    return every


def _outputs(
    pair: Pair, new: Leaves, trained: Leaves, piece: Piece
) -> Sequence[list[Array]]:
    """The outputs of both networks, without those that do not count."""
    outputs = [
        jax.tree.leaves(model.apply_fn(model.filler(leaves), piece.batch))
        for model, leaves in ((pair.student, new), (pair.teacher, trained))
    ]
    return counted(pair.teacher, outputs, piece)


def _loss(pair: Pair, places: list[int]) -> Any:
    """What the steps make smaller."""

    def of_outputs(leaves: Leaves, fixed: Any, piece: Piece) -> Array:
        new = _placed(pair, places, leaves, fixed)
        return relative(*_outputs(pair, new, fixed[1], piece))

    def of_layers(leaves: Leaves, fixed: Any, piece: Piece) -> Array:
        model, new = pair.student, _placed(pair, places, leaves, fixed)
        (outputs, mine), (trained, theirs) = responses(model, (new, fixed[1]), piece)
        pairs = zip(mine, theirs, strict=True)
        each = jnp.stack([relative(one, other) for one, other in pairs])
        whole = relative(outputs, trained) if pair.match == "both" else 0
        return each.mean() + whole

    return of_outputs if pair.match == "output" else of_layers


def _distance(pair: Pair, places: list[int]) -> Any:
    """How far the outputs are from the trained ones."""

    def distance(leaves: Leaves, fixed: Any, piece: Piece) -> tuple[Array, Array]:
        new = _placed(pair, places, leaves, fixed)
        mine, trained = _outputs(pair, new, fixed[1], piece)
        return moved(trained, mine, trained)

    return distance


def _adam(steps: int) -> "optax.GradientTransformation":
    import optax

    return optax.adam(optax.cosine_decay_schedule(RATE, steps))


def _in_tree(
    optimizer: "optax.GradientTransformation", pair: Pair, places: list[int]
) -> "optax.GradientTransformation":
    """The user's optimiser of a list of arrays, which it sees in the params' tree."""
    import optax

    require_optimizer("recover", optimizer)
    every, tree = jax.tree.flatten(pair.student.params)
    arrays = [i for i, leaf in enumerate(every) if is_array(leaf)]
    mine = [arrays[k] for k in places]
    inner = optax.with_extra_args_support(optimizer)

    def tree_of(leaves: Leaves) -> Params:
        placed: list[Any] = [optax.MaskedNode()] * len(every)
        for i, leaf in zip(mine, leaves, strict=True):
            placed[i] = leaf
        return tree.unflatten(placed)

    def init(leaves: Leaves) -> Any:
        return inner.init(tree_of(leaves))

    def update(
        updates: Leaves, state: Any, leaves: Leaves, **extra: Any
    ) -> tuple[Leaves, Any]:
        new, state = inner.update(tree_of(updates), state, tree_of(leaves), **extra)
        flat = tree.flatten_up_to(new)
        return [flat[i] for i in mine], state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _result(run: Steps, pair: Pair, places: list[int], steps: int) -> Recovered:
    leaves, step, deviation = run.best
    paths = paths_of(pair.student.params)
    new = _placed(pair, places, leaves, (pair.student.given,))
    keeps = [pair.keeps[k] for k in places]
    report = RecoverReport(
        before=run.curve[0][1],
        deviation=deviation,
        step=step,
        steps=run.step,
        planned=steps,
        curve=tuple(run.curve),
        moved=tuple(paths[k] for k in places),
        nonzeros=sum(int(keep.sum()) for keep in keeps),
        size=sum(keep.size for keep in keeps),
    )
    return Recovered(pair.student.give(new), pair.mask, report, run.state)
