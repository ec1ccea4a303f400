"""How to prune and what to tell, as one record.

Knows settings only.
"""

from collections.abc import Callable
from typing import NamedTuple

from nettrim_jax.convex.config import ADMM


class Options(NamedTuple):
    """What holds for all layers of one pruning."""

    solver: ADMM
    rows: int  # at most so many rows per layer
    held_out: float  # share of them that no solver sees
    keep: bool  # whether layers that fail stay as they were
    memory: int  # bytes that one call may take
    cascade: bool
    show: Callable[[int, str], None]  # how many layers are done, and what runs

    def silent(self) -> "Options":
        """The same, telling nothing."""
        return self._replace(show=lambda done, what: None)
