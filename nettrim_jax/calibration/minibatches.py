"""Batches of one size for many steps, and some that no step sees.

Knows batches; knows no network.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax.calibration.batches import batches, is_loader, weights_of
from nettrim_jax.calibration.splits import rows_of, take
from nettrim_jax.results import BatchError
from nettrim_jax.typing import Array, Batch, Weights


class Piece(NamedTuple):
    """A batch, and the weights of its rows if there are any."""

    batch: Batch
    weights: Array | None = None


class Minibatches:
    """The batches of steps: pieces of one batch, or those of a loader.

    One batch is cut along the leading axis of its arrays, every time in another order.
    A loader is read again and again, or once if it is an iterator.

    Args:
      batch: a batch or a loader.
      size: number of samples of a piece; a loader's batches stay as they are.
      checks: number of batches that no step sees: of one batch, drawn samples; of a
        loader, its first ones.
      key: a PRNG key.
      weights: of the rows, as for :func:`nettrim_jax.prune`.

    Attributes:
      checks: these batches.
      once: whether the batches end.

    Raises:
      BatchError: there are too few, or the weights do not fit them.
    """

    def __init__(
        self,
        batch: Batch,
        size: int,
        checks: int,
        key: Array,
        weights: Weights | None = None,
    ):
        self._batch, self._size = batch, size
        self._weights = weights if callable(weights) else lambda _: weights
        self.once = False
        self._loaded = is_loader(batch)
        if self._loaded:
            self._start = batches(batch)
            every = map(self._weighed, self._start)
            self.checks = list(itertools.islice(every, checks))
            self.once = hasattr(batch, "__next__")
            if len(self.checks) < checks:
                raise BatchError(
                    f"batches: the loader gave {len(self.checks)}, and the first "
                    f"{checks} are kept to measure; give more batches than checks="
                )
            return
        count = rows_of(batch)
        if count is None or count < (checks + 1) * size:
            raise BatchError(
                f"batches: one batch of {count or 'no common number of'} samples along "
                f"the leading axis of its arrays; {checks} pieces of {size} are kept "
                "to measure and the others are for the steps, so expected at least "
                f"{(checks + 1) * size}. Give more samples, a smaller size= or "
                "checks=, or a loader of batches"
            )
        given = None if callable(weights) else weights_of(weights)
        if given is not None and given.shape[:1] != (count,):
            raise BatchError(
                f"weights: shape {list(given.shape)} beside a batch of {count} "
                "samples; give one number per sample, or per sample and position"
            )
        self._whole = Piece(batch, given)
        self._seed = [int(word) for word in np.ravel(jax.random.key_data(key))]
        order = np.random.default_rng(self._seed).permutation(count)
        self._rest = order[checks * size :]
        pieces = order[: checks * size].reshape(checks, size)
        self.checks = [self._taken(np.sort(rows)) for rows in pieces]

    def after(self, step: int) -> Iterator[Piece]:
        """The batches of all steps behind the first so many."""
        every = self._read() if self._loaded else self._cut()
        return itertools.islice(every, step, None)

    def _weighed(self, batch: Batch) -> Piece:
        """A batch with its weights."""
        with _sharding.users():
            given = self._weights(batch)
        # padding may fill a whole batch
        return Piece(batch, weights_of(given, some=False))

    def _taken(self, rows: np.ndarray) -> Piece:
        """Some samples of the one batch."""
        piece = take(self._whole, rows)
        return self._weighed(piece.batch) if piece.weights is None else piece

    def _read(self) -> Iterator[Piece]:
        yield from map(self._weighed, self._start)
        while not self.once:
            some = False
            for one in itertools.islice(batches(self._batch), len(self.checks), None):
                some = True
                yield self._weighed(one)
            if not some:
                raise BatchError(
                    f"batches: the loader gave {len(self.checks)}, and all are kept to "
                    "measure; give more batches than checks="
                )

    def _cut(self) -> Iterator[Piece]:
        for turn in itertools.count(1):
            order = np.random.default_rng([*self._seed, turn]).permutation(self._rest)
            for start in range(0, len(order) - self._size + 1, self._size):
                yield self._taken(order[start : start + self._size])
