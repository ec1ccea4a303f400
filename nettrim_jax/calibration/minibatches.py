"""Batches of one size for many steps, and some that no step sees.

Knows batches; knows no network.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from nettrim_jax.calibration.batches import batches, is_loader
from nettrim_jax.calibration.splits import rows_of, take
from nettrim_jax.results import BatchError
from nettrim_jax.typing import Array, Batch


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

    Attributes:
      checks: these batches.
      once: whether the batches end.

    Raises:
      BatchError: there are too few.
    """

    def __init__(self, batch: Batch, size: int, checks: int, key: Array):
        self._batch, self._size = batch, size
        self.once = False
        self._loaded = is_loader(batch)
        if self._loaded:
            self._start = batches(batch)
            self.checks = list(itertools.islice(self._start, checks))
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
        self._seed = [int(word) for word in np.ravel(jax.random.key_data(key))]
        order = np.random.default_rng(self._seed).permutation(count)
        self._rest = order[checks * size :]
        pieces = order[: checks * size].reshape(checks, size)
        self.checks = [take(batch, np.sort(rows)) for rows in pieces]

    def after(self, step: int) -> Iterator[Batch]:
        """The batches of all steps behind the first so many."""
        every = self._read() if self._loaded else self._cut()
        return itertools.islice(every, step, None)

    def _read(self) -> Iterator[Any]:
        yield from self._start
        while not self.once:
            some = False
            for one in itertools.islice(batches(self._batch), len(self.checks), None):
                some = True
                yield one
            if not some:
                raise BatchError(
                    f"batches: the loader gave {len(self.checks)}, and all are kept to "
                    "measure; give more batches than checks="
                )

    def _cut(self) -> Iterator[Any]:
        for turn in itertools.count(1):
            order = np.random.default_rng([*self._seed, turn]).permutation(self._rest)
            for start in range(0, len(order) - self._size + 1, self._size):
                yield take(self._batch, order[start : start + self._size])
