"""The result of a pruning, whatever its route.

Knows arrays and reports; knows no route.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from nettrim_jax.report import SiteReport
from nettrim_jax.tracing.entries import kept_leaves
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import Array


class Finished(NamedTuple):
    """The result of a pruning."""

    leaves: list[Array]
    masks: dict[int, Array]  # of sites; the others keep what is not zero
    reports: dict[int, SiteReport]
    deviation: Array
    extra: dict[str, Any]  # further fields of the report
    keeps: Sequence[Array] | None = None  # masks of all leaves, where units are removed

    def kept(self, network: Network) -> list[Array]:
        """The mask of every leaf, in the shapes of the leaves."""
        found = kept_leaves(network, self.reports, self.leaves, self.masks)
        if self.keeps is None:
            return found
        return list(map(operator.and_, found, self.keeps))
