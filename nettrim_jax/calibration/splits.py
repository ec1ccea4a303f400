"""Splits a batch into rows to solve on, to steer a search and to check it.

Knows batches; knows no network and no solver.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax._trees import is_array, known
from nettrim_jax.calibration import batches
from nettrim_jax.calibration.batches import Each, Weighing
from nettrim_jax.results import BatchError, MethodError
from nettrim_jax.typing import Array, Batch

FOLDS = 16  # batches of the rows that steer; their spread gives the margin
FEW = 4096  # rows of a batch up to which the rows that solve and steer change places


class Turn(NamedTuple):
    """Rows to solve on, and others to steer by."""

    solve: Batch
    weights: Weighing | None
    steer: list[Batch]
    steer_weights: Each | None = None


class Dealt(NamedTuple):
    """A batch split in three, the last two as lists of batches."""

    solve: Batch  # a batch, or an iterator of batches if a loader was given
    weights: Weighing | None  # weights of the rows to solve on
    steer: list[Batch]
    check: list[Batch]
    share: float  # ratio of the rows that steer to those that check
    given: int  # number of rows in all, or of batches if theirs are not known
    steering: int  # how many of these steer
    unit: str = "rows"
    turns: tuple[Turn, ...] = ()  # in which the rows that do not check steer once
    whole: Turn | None = None  # all of these rows, to solve on
    steer_weights: Each | None = None  # of the batches that steer
    check_weights: Each | None = None  # and of those that check


def deal(
    batch: Batch,
    weights: Weighing | None,
    key: Array,
    folds: int = FOLDS,
    *,
    turns: bool = False,
) -> Dealt:
    """Takes half of the rows to solve on, a quarter to steer and a quarter to check.

    Rows are drawn with ``key`` along the leading axis that all arrays of the batch
    share. Each quarter becomes up to ``folds`` batches of equal size. The batches of a
    loader are dealt out in order, and those of the quarters are cut up where possible.

    With turns, and few rows, each quarter of the rows that do not check also steers in
    one turn, in which the other two are solved on.

    Args:
      batch: a batch or a loader.
      weights: as for :func:`nettrim_jax.prune`.
      key: a PRNG key.
      folds: largest number of batches per quarter; unless it is 1, there are at least
        2.
      turns: whether rows may change places.

    Raises:
      BatchError: the arrays share no leading axis, or there are too few rows.
    """
    if batches.is_loader(batch):
        return _deal_batches(list(batches.batches(batch)), weights, folds)
    n = rows_of(batch)
    if n is None:
        raise BatchError(
            "batch: a budget splits its rows along the leading axis, which all of "
            "its arrays must share, got "
            f"{[list(a.shape) for a in _arrays(batch)]}; give a loader of at least 3 "
            "batches instead"
        )
    least = min(folds, 2)
    # where a length is part of a type, every batch is a multiple of its pieces
    pieces = max(map(_sharding.pieces, _arrays(batch)))
    folds = min(folds, n // (4 * pieces))
    if folds < least:
        raise BatchError(
            f"batch: {n} rows; a budget needs at least {4 * least * pieces}: half to "
            "solve on, a quarter to steer by and a quarter to check on (and some "
            "hundreds to be of use)"
        )
    each = n // (4 * folds * pieces) * pieces
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, n), n))
    cut = n - 2 * folds * each
    if weights is not None and not callable(weights):
        shape = np.shape(weights)
        if not shape or shape[0] != n:
            raise BatchError(
                f"weights: shape {list(shape)}; a budget splits them with the {n} rows "
                "of the batch, so expected one entry for each along the leading axis"
            )
        weights = np.asarray(weights)
    parts = order[cut:].reshape(2 * folds, each)
    first, check = parts[:folds], [take(batch, rows) for rows in parts[folds:]]
    mine = _turn(batch, weights, order[:cut], first)
    dealt = Dealt(
        *(mine.solve, mine.weights, mine.steer, check, 1.0, n, first.size),
        steer_weights=mine.steer_weights,
        check_weights=_each(weights, check, parts[folds:]),
    )
    if not (turns and folds == FOLDS and n <= FEW):
        return dealt
    # of the rows to solve on, as many as steer, twice
    others = order[: 2 * first.size].reshape(2, folds, each)
    rest = np.concatenate([order[:cut], first.ravel()])
    more = [
        _turn(batch, weights, rest[~np.isin(rest, steer)], steer) for steer in others
    ]
    whole = _turn(batch, weights, rest, first[:0])
    return dealt._replace(turns=(mine, *more), whole=whole)


def _turn(
    batch: Batch, weights: Weighing | None, solve: np.ndarray, steer: np.ndarray
) -> Turn:
    """Rows to solve on, and those to steer by in batches ``[batches, rows]``."""
    own = weights
    if weights is not None and not callable(weights):
        own = np.asarray(weights)[solve]
    steering = [take(batch, rows) for rows in steer]
    return Turn(take(batch, solve), own, steering, _each(weights, steering, steer))


def _each(
    weights: Weighing | None, pieces: Sequence[Batch], rows: Iterable[np.ndarray]
) -> Each | None:
    """The weights of each piece of a batch, which has these rows of it."""
    if weights is None:
        return None
    if callable(weights):
        with _sharding.users():
            return Each(map(weights, pieces))
    return Each(np.asarray(weights)[some] for some in rows)


def concrete(tree: Any, asked: str, otherwise: str) -> None:
    """Raises MethodError if a value is being traced.

    Args:
      tree: the values that must be concrete.
      asked: the setting that asks for a search.
      otherwise: the advice at the end of the message.
    """
    with warnings.catch_warnings():  # JAX warns about iterables that are no pytrees
        warnings.simplefilter("ignore", DeprecationWarning)
        leaves = jax.tree.leaves(tree)
    if not all(known(leaf) for leaf in leaves):
        raise MethodError(
            f"{asked}: the search measures networks and chooses among them, so it "
            "needs concrete values and does not work within jax.jit, jax.vmap or "
            f"jax.grad; call it outside of them, or {otherwise}"
        )


def _deal_batches(given: list[Batch], weights: Weighing | None, folds: int) -> Dealt:
    if len(given) < 3:
        raise BatchError(
            f"batch: the loader gave {len(given)} batches; a budget needs at least 3: "
            "to solve on, to steer by and to check on"
        )
    solve = [one for i, one in enumerate(given) if i % 4 in (0, 3)]
    steer, check = given[1::4], given[2::4]
    share = len(steer) / len(check)
    rows, steering = _count(given), _count(steer)
    counts = len(given), len(steer), "batches"
    if rows is not None and steering is not None:
        counts = rows, steering, "rows"
    if folds == 1:
        dealt = Dealt(iter(solve), weights, steer, check, share, *counts)
        steering, checking = _of_all(weights, steer), _of_all(weights, check)
        return dealt._replace(steer_weights=steering, check_weights=checking)
    parts, of_parts = _cut(steer, weights)
    if len(parts) < 2:
        raise BatchError(
            "batch: only one of the loader's batches steers the search, which needs "
            "two to know how far rows differ, and its arrays share no leading axis of "
            "at least 2 rows to cut it along; give at least 6 batches"
        )
    checks, of_checks = _cut(check, weights)
    dealt = Dealt(iter(solve), weights, parts, checks, share, *counts)
    return dealt._replace(steer_weights=of_parts, check_weights=of_checks)


def _cut(
    given: list[Batch], weights: Weighing | None
) -> tuple[list[Batch], Each | None]:
    """Cuts each batch into equal ones, ``FOLDS`` or more in all, if possible.

    Returns:
      These, and their weights.
    """
    pieces = -(-FOLDS // len(given))
    counts = [rows_of(one) for one in given]
    most = min((n for n in counts if n is not None), default=1)
    pieces = min(pieces, most)
    if pieces < 2 or None in counts:
        return given, _of_all(weights, given)
    out, own = [], []
    for one, n in zip(given, counts, strict=True):
        each = (n or 0) // pieces
        places = np.arange(pieces * each).reshape(pieces, each)
        parts = [take(one, rows) for rows in places]
        out += parts
        own += _each(weights, parts, places) or ()
    return out, Each(own) if own else None


def _of_all(weights: Weighing | None, given: list[Batch]) -> Each | None:
    """The weights of batches of a loader."""
    if weights is None or callable(weights):
        return _each(weights, given, ())
    return Each([weights] * len(given))


def _arrays(batch: Batch) -> list[Any]:
    return [a for a in jax.tree.leaves(batch) if is_array(a) and a.ndim]


def rows_of(batch: Batch) -> int | None:
    """The length of the leading axis, if all arrays share it."""
    lengths = {a.shape[0] for a in _arrays(batch)}
    return lengths.pop() if len(lengths) == 1 else None


def _count(given: list[Batch]) -> int | None:
    """The number of rows of some batches, if each has a leading axis of its own."""
    counts = [rows_of(one) for one in given]
    return None if None in counts else sum(n or 0 for n in counts)


def take(batch: Batch, rows: np.ndarray) -> Batch:
    """Some rows of all arrays of a batch."""
    return jax.tree.map(
        lambda a: _sharding.take(a, rows) if is_array(a) and a.ndim else a, batch
    )
