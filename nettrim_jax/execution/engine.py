"""Some sites together: what is alike is solved in one call, written back, measured.

The stretch of a pruning that both modes share, and every search. Knows what a method
is, not which there are; runs no network.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax.calibration.capture import Activation
from nettrim_jax.execution import batching, layer
from nettrim_jax.execution.layer import Place
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.base import Lanes, LayerData, LayerKind, Method
from nettrim_jax.report import SiteReport
from nettrim_jax.results import ProgramError
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.tracing.sites import Network, Site
from nettrim_jax.typing import Array

Leaves = Sequence[Array]


class Job(NamedTuple):
    """One site with its method and what it saw."""

    site: Site
    method: Method
    seen: Activation
    fed: bool  # whether pruned layers feed it

    def kind(self, share: float) -> LayerKind:
        """What is static of the site; ``share`` of its rows is held out."""
        n = self.seen.X.shape[1]
        # at least one row is left to solve on
        return kind_of(self.site, self.method, min(round(share * n), n - 1), self.fed)

    def place(self, leaves: Leaves) -> Place:
        """Where the site stands in some leaves."""
        site = self.site
        weights = Entries(leaves[site.leaf], jnp.asarray(site.index))
        if self.method.bias == "fixed" or site.bias is None:
            return Place(weights, None)
        leaf, index = site.bias
        return Place(weights, Entries(leaves[leaf], jnp.asarray(index)))


class Outcome(NamedTuple):
    """What became of one site."""

    report: SiteReport
    solved: Any  # what solved its problem, from which another solve may start


def kind_of(site: Site, method: Method, held: int = 0, fed: bool = False) -> LayerKind:
    """What is static of a site under a method."""
    b, d_in, d_out = site.index.shape
    return LayerKind(
        shape=(b, d_in, d_out),
        relu=site.response == "relu",
        biased=site.bias is not None and method.bias != "fixed",
        layers=site.layers,
        channels=site.channels,
        held=held,
        fed=fed,
    )


def jobs_of(
    network: Network,
    asked: Mapping[int, Method],
    seen: Sequence[Activation],
    fed: bool = False,
) -> dict[int, Job]:
    """One job per site, by position; ``seen`` is in the order of ``asked``."""
    return {
        k: Job(network.sites[k], method, one, fed)
        for (k, method), one in zip(asked.items(), seen, strict=True)
    }


def solve_sites(
    jobs: Mapping[int, Job],
    trained: Leaves,
    leaves: Leaves,
    options: Options,
    starts: Mapping[int, Any] | None = None,
) -> tuple[list[Array], dict[int, Outcome]]:
    """Prunes some sites together.

    Args:
      jobs: the sites, by position.
      trained: the trained leaves.
      leaves: the leaves as pruned by now.
      options: how to solve.
      starts: what solved each site last, from which to start, where it is there.

    Returns:
      The leaves with the answers in them, and what became of each site.
    """
    new, out, data, problems = list(leaves), {}, {}, {}
    for k, job in jobs.items():
        data[k] = LayerData(*job.place(trained), job.seen)
        try:
            kind = job.kind(options.held_out)
            problems[k] = job.method.prepare(data[k], kind)
        except ProgramError as error:
            raise ProgramError(f"{job.site.path}: {error}") from None
    solved = _solve(jobs, problems, options, starts)
    for k, job in jobs.items():
        kind = job.kind(options.held_out)
        answer = job.method.conclude(data[k], solved.get(k), kind)
        # of no matter any more, and to be compiled for otherwise
        kind = kind._replace(fed=False, biased=False, layers=1)
        written = layer.finish(answer, data[k], job.place(new), kind, options.keep)
        new[job.site.leaf] = written.leaf
        if job.site.bias is not None and written.bias is not None:
            new[job.site.bias[0]] = written.bias
        out[k] = Outcome(_entry(job, kind.held, written.figures), solved.get(k))
    return new, out


def _solve(
    jobs: Mapping[int, Job],
    problems: Mapping[int, Any],
    options: Options,
    starts: Mapping[int, Any] | None,
) -> dict[int, Any]:
    """What solves each problem; problems that are alike are solved in one call."""
    buckets: dict[Any, list[int]] = {}
    for k, problem in problems.items():
        if problem is not None:
            alike = jax.tree.structure(jobs[k].method), batching.kind_of(problem)
            buckets.setdefault(alike, []).append(k)
    out: dict[int, Any] = {}
    for members in buckets.values():
        method = jobs[members[0]].method
        stack = batching.joined([problems[k] for k in members])
        chunk = batching.at_once(*method.cost(stack), options.memory)
        each = functools.partial(batching.each, chunk=chunk)
        lanes, start = Lanes(options.solver, each), None
        if starts is not None:
            solve = functools.partial(method.solve, lanes=lanes)
            before = [
                starts[k] if k in starts else _nowhere(solve, problems[k])
                for k in members
            ]
            start = batching.joined(before)
        sizes = [batching.length(problems[k]) for k in members]
        parts = batching.parted(method.solve(stack, lanes, start), sizes)
        out |= zip(members, parts, strict=True)
        options.show(len(out), "solving")
    return out


def _nowhere(solve: Any, problem: Any) -> Any:
    """A start for every lane that is passed over: one program, warm or not."""
    return jax.tree.map(
        lambda a: jnp.full(
            a.shape, jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else 0, a.dtype
        ),
        jax.eval_shape(solve, problem),
    )


def _entry(job: Job, held: int, figures: dict[str, Array]) -> SiteReport:
    site = job.site
    lanes, d_in, d_out = site.index.shape
    return SiteReport(
        path=site.path,
        kind=site.kind,
        response=site.response,
        shape=(lanes, job.seen.X.shape[1] - held, d_in, d_out),
        size=site.index.size,
        **figures,
    )
