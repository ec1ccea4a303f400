"""The options of a pruning, as one record.

Knows settings; knows no network and no method.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from nettrim_jax.convex.config import ADMM
from nettrim_jax.typing import Array


class Options(NamedTuple):
    """The options that hold for all layers of one pruning."""

    solver: ADMM
    rows: int  # the largest number of rows per layer
    held_out: float  # share of the rows that no solver sees
    keep: bool  # whether layers that fail stay as they were
    memory: int  # number of bytes that one call may take
    cascade: bool
    show: Callable[[int, str], None]  # gets the layers done, and the step
    revive: bool = False  # whether weights that are zero already may be left
    within: Sequence[Array] | None = None  # masks of the leaves; others become zero

    def silent(self) -> "Options":
        """The same options without progress."""
        return self._replace(show=lambda done, what: None)
