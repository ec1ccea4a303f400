"""Solves single layers and puts the answers into networks, for all searches.

Knows the engine and meters; knows no particular method.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from nettrim_jax.allocation.evaluation import Meter
from nettrim_jax.execution.engine import Outcome, jobs_of, solve_sites
from nettrim_jax.execution.options import Options
from nettrim_jax.execution.orders import Methods, Seen
from nettrim_jax.methods.base import Method
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Values
from nettrim_jax.tracing.sites import Site
from nettrim_jax.typing import Array

Leaves = list[Array]


class Workshop:
    """Solves the layers of a search; all other layers are pruned once, before it.

    Args:
      seen: the layers' activations in the trained network.
      asked: the sites' methods.
      mine: the sites of the search.
      options: how to solve.
      meter: measures networks.
    """

    def __init__(
        self,
        seen: Seen,
        asked: Methods,
        mine: Collection[int],
        options: Options,
        meter: Meter,
    ):
        self.network, self.old = seen.first.network, seen.first.model.leaves
        self.asked, self.meter = asked, meter
        self.jobs = jobs_of(self.network, asked, seen.activations)
        fixed = {k: job for k, job in self.jobs.items() if k not in mine}
        base, outcomes = solve_sites(fixed, self.old, self.old, options.silent())
        self.base: Leaves = base
        self.reports = {k: outcome.report for k, outcome in outcomes.items()}
        self.masks = {k: outcome.mask for k, outcome in outcomes.items()}
        self.beside = meter.outputs(base) if fixed else meter.trained

    def site(self, k: int) -> Site:
        """The site at a position."""
        return self.network.sites[k]

    def solve(
        self,
        methods: Mapping[int, Method],
        options: Options,
        starts: Mapping[int, Any] | None = None,
    ) -> tuple[Leaves, dict[int, Outcome]]:
        """Solves some layers by these methods, with all others as in ``base``."""
        jobs = {k: self.jobs[k]._replace(method=m) for k, m in methods.items()}
        return solve_sites(jobs, self.old, self.base, options.silent(), starts)

    def values(self, k: int, leaves: Leaves) -> Values:
        """Takes a site's answer out of leaves."""
        return entries.take(self.site(k), leaves, self.asked[k].bias != "fixed")

    def put(self, leaves: Leaves, answers: Iterable[tuple[int, Values]]) -> Leaves:
        """The leaves with the answers of some sites."""
        for k, values in answers:
            leaves = entries.put(self.site(k), leaves, values)
        return leaves

    def cost(self, leaves: Leaves) -> float:
        """Squared deviation from the network ``base``; infinite if it is not finite."""
        cost = self.meter.cost(leaves, self.beside)
        return cost if math.isfinite(cost) else math.inf
