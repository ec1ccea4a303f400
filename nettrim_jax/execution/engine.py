"""Prunes some sites: solves similar ones in one call, writes and measures all.

Both modes and every search prune their sites through this module.
Knows the protocol of methods; knows no particular method and runs no network.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax import _sharding
from nettrim_jax._numerics import in_turn
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.execution import batching, layer
from nettrim_jax.execution.layer import Place
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.base import Lanes, LayerData, LayerKind, Method, kind_of
from nettrim_jax.report import SiteReport
from nettrim_jax.results import ProgramError
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.sites import Network, Site
from nettrim_jax.typing import Array

Leaves = Sequence[Array]


class Job(NamedTuple):
    """One site with its method and its rows."""

    site: Site
    method: Method
    seen: Activation
    fed: bool  # whether pruned layers feed it

    def kind(self, share: float) -> LayerKind:
        """The static facts about the site; ``share`` of its rows is held out."""
        n = self.seen.X.shape[1]
        # at least one row is left to solve on
        return kind_of(self.site, self.method, min(round(share * n), n - 1), self.fed)

    def allowed(self, place: Place, options: Options) -> Array | None:
        """The site's weights that may be left; None for all."""
        mask = None
        if options.within is not None:
            mask = entries.of(options.within[self.site.leaf], self.site.index)
        return layer.allowed(place.weights, mask, self.site.layers, options.revive)

    def place(self, leaves: Leaves) -> Place:
        """The site's entries of some leaves."""
        site = self.site
        weights = entries.weights_of(site, leaves)
        if self.method.bias == "fixed" or site.bias is None:
            return Place(weights, None)
        leaf, index = site.bias
        return Place(weights, entries.of(leaves[leaf], index))


class Outcome(NamedTuple):
    """The outcome of one site."""

    report: SiteReport
    mask: Array  # [b, d_in, d_out] bool, False where a weight was removed
    solved: Any  # a start for another solve; None unless this one was given starts


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
      leaves: the leaves as pruned so far.
      options: how to solve.
      starts: the last solution of each site, to start from; sites may be missing.

    Returns:
      The leaves with the answers in them, and the outcome of each site.
    """
    new, out, data, problems = list(leaves), {}, {}, {}
    for k, job in jobs.items():
        place = job.place(trained)
        allowed = job.allowed(place, options)
        data[k] = LayerData(*place, job.seen, allowed)
        try:
            kind = job.kind(options.held_out)
            problems[k] = job.method.prepare(data[k], kind)
        except ProgramError as error:
            raise ProgramError(f"{job.site.path}: {error}") from None
    solved = _solve(jobs, problems, options, starts)
    done: Any = solved
    for k, job in jobs.items():
        kind = job.kind(options.held_out)
        # what is no longer used would only compile again
        seen = in_turn(data[k].seen._replace(P0=None), done)
        answer = job.method.conclude(data[k]._replace(seen=seen), solved.get(k), kind)
        done = answer.W
        kind = kind._replace(fed=False, biased=False)
        lean = data[k]._replace(seen=seen._replace(stats={}))
        written = layer.finish(answer, lean, job.place(new), kind, options.keep)
        # a program may leave all of a leaf on every device
        answers = {job.site.leaf: written.leaf}
        if job.site.bias is not None and written.bias is not None:
            answers[job.site.bias[0]] = written.bias
        for leaf, array in answers.items():
            new[leaf] = _sharding.like(array, new[leaf])
        # a solution is as large as all rows: it is kept only if another may start there
        again = None if starts is None else solved.get(k)
        entry = _entry(job, kind.held, written.figures)
        out[k] = Outcome(entry, written.mask, again)
    return new, out


def _solve(
    jobs: Mapping[int, Job],
    problems: Mapping[int, Any],
    options: Options,
    starts: Mapping[int, Any] | None,
) -> dict[int, Any]:
    """The solution of each problem; similar problems are solved in one call."""
    buckets: dict[Any, list[int]] = {}
    for k, problem in problems.items():
        if problem is not None:
            alike = jax.tree.structure(jobs[k].method), batching.kind_of(problem)
            buckets.setdefault(alike, []).append(k)
    out: dict[int, Any] = {}
    for members in buckets.values():
        method = jobs[members[0]].method
        stack = batching.joined([problems[k] for k in members])
        stack = in_turn(stack, [*out.values()][-1:])
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
        if not batching.ready(stack):
            options.show(len(out), "compiling")
        sizes = [batching.length(problems[k]) for k in members]
        parts = batching.parted(method.solve(stack, lanes, start), sizes)
        out |= zip(members, parts, strict=True)
        options.show(len(out), "solving")
    return out


def _nowhere(solve: Any, problem: Any) -> Any:
    """A start that every lane ignores, so that all starts use one compilation."""
    # a step size of zero is none
    return jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(solve, problem)
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
        limits=site.clip.limits,
        **figures,
    )
