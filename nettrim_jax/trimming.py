"""``trim``: rounds of choosing units, removing them and training again.

Knows ``prune`` and the steps of a removal; no package knows it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from nettrim_jax._checks import random_key
from nettrim_jax._values import flag, real, whole
from nettrim_jax.calibration.batches import batches, is_loader
from nettrim_jax.pruning import Pruned, prune
from nettrim_jax.results import BatchError, MethodError, warn
from nettrim_jax.structure import Round, Small, Trimmed, rounds, shrink
from nettrim_jax.typing import ApplyFn, Array, Batch, Params

# what the user measures or trains: a network as its params and its function
Train = Callable[[Params, ApplyFn], Params]
Metric = Callable[[Params, ApplyFn], Any]


def trim(
    params: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    method: Any,
    *,
    until: int | Callable[[Round], Any],
    train: Train | None = None,
    metric: Metric | None = None,
    after: Round | None = None,
    key: int | Array = 0,
    **options: Any,
) -> Trimmed:
    r"""Makes a network smaller in rounds: choose units, remove them, train again.

    .. math::
        \theta_k = \text{train}\big(S_k(\text{prune}(\theta_{k-1})),\; f_k\big)

    in round :math:`k`, where :math:`S_k` removes the units that the pruning left dead,
    as :func:`shrink` does, and :math:`f_k` is the function of the smaller arrays. The
    method, the training, and when to stop are the user's own.

    Two published loops are instances. Network Trimming (Hu, Peng, Tai and Tang, 2016)
    takes out the units that are zero most often, and trains until the accuracy is back,
    from the weights that are left: ``method`` is ``Units(deviations=1, by=APoZ(),
    refit=False)``, or a function of the round's number that takes the layers in turns.
    Molchanov et al. (2017) take out a few channels of the whole network, those without
    which a loss changes least to first order, and train for some steps only, many
    times: ``method`` is a function that makes ``Units(share, by=Taylor(loss),
    scope="network", refit=False)`` with a loss that calls the round's ``apply_fn``, and
    ``until`` is ``lambda round: round.multiply_adds.share < 0.3``.

    Args:
      params: a pytree of arrays.
      apply_fn: the network, ``apply_fn(params, batch)``.
      batch: its second argument; or a loader of such batches, which every round reads
        anew. Multiply-adds are those of one batch, the first one.
      method: any method of :func:`prune` that zeroes whole units, such as
        ``Units(0.2)`` or ``Magnitude(Neurons(0.2))``, or a dict of such; or a function
        that returns one, ``method(number, apply_fn)``, of the number of the round, 1,
        2, ..., and of the function of its network, which a loss has to call.
      until: the number of the last round; or a function of a :class:`Round
        <nettrim_jax.structure.Round>` that is true if no other should follow. It is
        asked before the first round, too, of the network as given (round 0), and may
        store what it is given.
      train: ``train(params, apply_fn)`` returns trained params, of the same tree,
        shapes and dtypes. None trains nothing.
      metric: ``metric(params, apply_fn)`` returns a number, which the table shows
        before and behind the training of each round.
      after: the round to go on from; ``params`` and ``apply_fn`` are then those of this
        round. The rounds behind it are the same as without the interruption, if the
        other arguments are.
      key: seed of the random draws, an integer or a PRNG key; every round draws anew.
      **options: other arguments of :func:`prune`, such as ``mode``, ``weights``,
        ``rows`` or ``include``. A tree given as ``within`` is cut to each round's
        sizes.

    Returns:
      All rounds, each with its network, sizes and metric, and why they ended: ``until``
      said so, or, with a warning, a round removed nothing.

    Raises:
      NetTrimError: an argument is not valid, or ``train`` returned other shapes; or as
        for :func:`prune` and :func:`shrink`. A note of the error has the round.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {
      ...     "hidden": jax.random.normal(keys[0], (20, 32), "float32"),
      ...     "output": jax.random.normal(keys[1], (32, 5), "float32"),
      ... }
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["hidden"]) @ params["output"]
      >>> x = jax.random.normal(keys[2], (100, 20), "float32")
      >>> y = apply_fn(params, x)
      >>> def train(params, apply_fn):
      ...     loss = lambda params: jnp.mean((apply_fn(params, x) - y) ** 2)
      ...     step = lambda _, p: jax.tree.map(
      ...         lambda a, g: a - 0.003 * g, p, jax.grad(loss)(p)
      ...     )
      ...     return jax.lax.fori_loop(0, 50, step, params)
      >>> quarter = {"hidden": nt.Magnitude(nt.Neurons(0.25)), ".*": None}
      >>> trimmed = nt.trim(params, apply_fn, x, quarter, train=train, until=3)
      >>> [one.units["hidden"] for one in trimmed.rounds]
      [24, 18, 14]
      >>> jax.tree.map(jnp.shape, trimmed.params)
      {'hidden': (20, 14), 'output': (14, 5)}
      >>> trimmed.apply_fn(trimmed.params, x).shape
      (100, 5)

      From any round it goes on, here with the same settings:

      >>> one = trimmed.rounds[0]
      >>> again = nt.trim(
      ...     one.params, one.apply_fn, x, quarter, train=train, until=3, after=one
      ... )
      >>> same = jax.tree.map(jnp.array_equal, again.params, trimmed.params)
      >>> bool(same["hidden"] and same["output"])
      True
    """
    _check(until, train, metric, after)
    if is_loader(batch) and hasattr(batch, "__next__"):
        raise BatchError(
            "trim: batch is an iterator, which can be read only once, and every round "
            "reads it; give one batch, or a loader that starts anew at each iter()"
        )
    key = random_key(key, "trim")
    one = next(batches(batch))
    within = options.pop("within", None)
    # a class is a method without its settings, which prune refuses
    schedule = callable(method) and not isinstance(method, type)
    if after is None:
        value = None if metric is None else _measured(metric, params, apply_fn)
        last = rounds.given(params, apply_fn, one, value)
    else:
        advice = "give params=r.params and apply_fn=r.apply_fn of that round r"
        rounds.require_like(params, after.params, "trim(after=r): got", advice)
        last = dataclasses.replace(after, params=params, apply_fn=apply_fn)
    while not (stop := _stop(until, last)):
        number = last.number + 1
        with _noted(number):
            inside = None if within is None else last.cut(within)
            chosen: Any = method(number, last.apply_fn) if schedule else method
            pruned = prune(
                last.params,
                last.apply_fn,
                batch,
                method=chosen,
                key=jax.random.fold_in(key, number),
                within=inside,
                **options,
            )
            small = shrink(pruned, last.apply_fn, one)
            if not small.report.changed:
                stop = f"round {number} removed nothing: {_why_nothing(pruned)}"
                warn(f"trim: {stop}")
                break
            last = _trained(last, small, float(pruned.report.deviation), train, metric)
    first, *others = *last.earlier, last
    return Trimmed(first, tuple(others), stop)


def _trained(
    last: Round,
    small: Small,
    deviation: float,
    train: Train | None,
    metric: Metric | None,
) -> Round:
    """The next round: a smaller network, trained and measured."""
    params, apply_fn = small.params, small.apply_fn
    before = None if metric is None else _measured(metric, params, apply_fn)
    value = before
    if train is not None:
        params = train(params, apply_fn)
        advice = (
            "return the params that were given, trained, as train(params, apply_fn)"
        )
        rounds.require_like(params, small.params, "trim: train returned", advice)
        if metric is not None:
            value = _measured(metric, params, apply_fn)
    measured = {"deviation": deviation, "metric_before": before, "metric": value}
    return rounds.following(last, small, params, **measured)


def _measured(metric: Metric, params: Params, apply_fn: ApplyFn) -> float:
    value = metric(params, apply_fn)
    if not real(value) or np.ndim(value):
        raise MethodError(
            f"trim(metric): expected one number from metric(params, apply_fn), got "
            f"{_described(value)}"
        )
    return float(value)


def _stop(until: int | Callable[[Round], Any], last: Round) -> str:
    """Why no round follows; empty if one does."""
    if not callable(until):
        return f"until={until}" if last.number >= until else ""
    answer = until(last)
    dtype = getattr(answer, "dtype", None)
    if np.ndim(answer) or not (flag(answer) or dtype == np.bool_):
        raise MethodError(
            f"trim(until): expected True or False from until(round), got "
            f"{_described(answer)}; return for instance round.number == 5 or "
            "round.multiply_adds.share < 0.3"
        )
    return f"until(round) is true of round {last.number}" if answer else ""


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"{value.dtype} {list(shape)}"


def _why_nothing(pruned: Pruned) -> str:
    if all(np.all(np.asarray(kept)) for kept in jax.tree.leaves(pruned.mask)):
        return "the method removed no weight"
    return (
        "weights were removed, but not all of a unit that can go; take a method that "
        "zeroes whole units, such as Units(0.2), and see nettrim_jax.units"
    )


@contextlib.contextmanager
def _noted(number: int) -> Iterator[None]:
    """Errors say in which round they were raised."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"in round {number} of nettrim_jax.trim; the rounds before it can be had "
            "with until=, which is given each, and gone on from with after="
        )
        raise


def _check(until: Any, train: Any, metric: Any, after: Any) -> None:
    for name, value, good, wanted in (
        (
            "until",
            until,
            callable(until) or (whole(until) and until >= 0),
            "the number of the last round, an integer, or a function of a round",
        ),
        (
            "train",
            train,
            train is None or callable(train),
            "a function train(params, apply_fn) that returns params, or None",
        ),
        (
            "metric",
            metric,
            metric is None or callable(metric),
            "a function metric(params, apply_fn) that returns a number, or None",
        ),
        (
            "after",
            after,
            after is None or isinstance(after, Round),
            "a round, such as trimmed.rounds[0], or None",
        ),
    ):
        if not good:
            raise MethodError(f"trim({name}={value!r}): expected {wanted}")
