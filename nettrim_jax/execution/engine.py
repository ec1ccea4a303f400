"""Some sites together: a program, a rule or a fit each, written back and measured.

The stretch of a pruning that both modes share. Knows sites, methods and the solver;
runs no network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from nettrim_jax.calibration.capture import Activation
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Solution
from nettrim_jax.execution import batching
from nettrim_jax.execution import layer as layers
from nettrim_jax.execution.layer import Measured, Place
from nettrim_jax.methods.nettrim import Method, NetTrim
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.methods.refit import Refit
from nettrim_jax.methods.rules import Rule
from nettrim_jax.report import SiteReport
from nettrim_jax.results import ProgramError
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.tracing.sites import Graph, Site
from nettrim_jax.typing import Array

Task = Method | Refit  # what can be asked of a site


class Settings(NamedTuple):
    """How to solve and what to tell."""

    solver: ADMM
    rows: int
    held_out: float
    keep: bool
    memory: int
    show: Callable[[int, str], None]


def prune_sites(
    graph: Graph,
    asked: Mapping[int, Task],
    seen: Sequence[Activation],
    old: list[Array],
    new: list[Array],
    settings: Settings,
    fed: bool,
    starts: dict[int, Solution] | None = None,
) -> dict[int, SiteReport]:
    """Prunes some sites together and writes their answers into ``new``.

    Args:
      graph: the network's layers.
      asked: what to do with each site, by position.
      seen: what each of them saw.
      old: the trained leaves.
      new: the leaves as pruned by now; changed in place.
      settings: how to solve.
      fed: whether pruned layers feed these.
      starts: where the first solve of each site starts, if it is there; changed in
        place to where it stopped.

    Returns:
      One entry per site, by position.
    """
    jobs = {}
    for (k, m), a in zip(asked.items(), seen, strict=True):
        held = layers.held_out_rows(a.X.shape[1], settings.held_out)
        jobs[k] = _Job(graph.sites[k], m, a, held)
    call, entries = _Call(old, new, settings, fed, starts), {}
    for kind, finish in (
        (NetTrim, _by_program),
        (Rule, _by_rule),
        (Reconstruct, _by_pattern),
        (Refit, _by_refit),
    ):
        mine = {k: job for k, job in jobs.items() if isinstance(job.method, kind)}
        entries |= finish(mine, call) if mine else {}
    return {k: entries[k] for k in jobs}


class _Call(NamedTuple):
    """What the sites of one call share; names as in :func:`prune_sites`."""

    old: list[Array]
    new: list[Array]
    settings: Settings
    fed: bool
    starts: dict[int, Solution] | None


class _Job(NamedTuple):
    """One site with its method and what it saw."""

    site: Site
    method: Task
    seen: Activation
    held: int  # rows kept from the solver

    @property
    def relu(self) -> bool:
        return self.site.response == "relu"

    @property
    def bias(self) -> str:
        return self.method.bias if self.site.bias is not None else "fixed"

    def program(
        self, method: NetTrim, old: Sequence[Array], fed: bool
    ) -> tuple[Program, Array]:
        try:
            return layers.program(
                method.of_channels(self.site.channels),
                self.place(old),
                self.seen,
                self.relu,
                self.bias,
                self.held,
                fed,
            )
        except ProgramError as error:
            raise ProgramError(f"{self.site.path}: {error}") from None

    def place(self, leaves: Sequence[Array]) -> Place:
        weights = Entries(leaves[self.site.leaf], jnp.asarray(self.site.index))
        if self.bias == "fixed" or self.site.bias is None:
            return Place(weights, None)
        leaf, index = self.site.bias
        return Place(weights, Entries(leaves[leaf], jnp.asarray(index)))


def _by_program(jobs: dict[int, _Job], call: _Call) -> dict[int, SiteReport]:
    """Solves the sites' programs, writes the solutions, and says what they are."""
    mine = {k: j.method for k, j in jobs.items() if isinstance(j.method, NetTrim)}
    made = [jobs[k].program(method, call.old, call.fed) for k, method in mine.items()]
    stacks = [program for program, _ in made]
    solutions = _solve(mine, stacks, call.settings, call.starts)
    return {
        k: _finish(job, call, solution, budget)
        for (k, job), solution, (_, budget) in zip(
            jobs.items(), solutions, made, strict=True
        )
    }


def _solve(
    asked: Mapping[int, NetTrim],
    stacks: Sequence[Program],
    settings: Settings,
    starts: dict[int, Solution] | None,
) -> list[Solution]:
    """All sites' programs, again reweighted and refitted as their methods ask."""
    solver, memory, methods = settings.solver, settings.memory, list(asked.values())
    before = None
    if starts is not None:
        before = [
            starts[k] if k in starts else batching.nowhere(stack, solver)
            for k, stack in zip(asked, stacks, strict=True)
        ]
    solutions = batching.solve_all(
        stacks,
        solver,
        memory,
        lambda solved: settings.show(solved, "solving"),
        before,
    )
    if starts is not None:
        starts.update(zip(asked, solutions, strict=True))
    for again in range(1, max((m.rounds for m in methods), default=1)):
        mine = [i for i, m in enumerate(methods) if m.rounds > again]
        next_ones = [layers.reweight(stacks[i], solutions[i]) for i in mine]
        before = [solutions[i] for i in mine]
        answers = batching.solve_all(next_ones, solver, memory, before=before)
        for i, answer in zip(mine, answers, strict=True):
            solutions[i] = answer
    for i, m in enumerate(methods):
        if m.refit:
            chunk = batching.lanes_at_once(stacks[i], memory)
            W, b = solutions[i].W, solutions[i].bias
            W, b = batching.refit_stack(stacks[i], W, b, chunk)
            solutions[i] = solutions[i]._replace(W=W, bias=b)
    return solutions


def _finish(job: _Job, call: _Call, solution: Solution, budget: Array) -> SiteReport:
    """Writes one solution into the new leaves and says what it is."""
    new = call.new
    leaf, bias = layers.write(
        job.place(new), job.seen, solution, job.bias, job.held, call.settings.keep
    )
    _put(job, new, leaf, bias)
    stats, certificate = solution.stats, solution.certificate
    return _entry(
        job,
        _measure(job, call.old, leaf, bias),
        epsilon=jnp.max(budget),
        result=jnp.max(solution.result),
        steps=jnp.max(stats.steps),
        gap=jnp.max(certificate.gap),
        violation=jnp.max(certificate.violation),
    )


def _by_rule(jobs: dict[int, _Job], call: _Call) -> dict[int, SiteReport]:
    """Writes what rules leave of the sites and says what it is."""
    entries = {}
    for k, job in jobs.items():
        assert isinstance(job.method, Rule)
        leaf, result = layers.by_rule(
            job.method,
            job.place(call.old),
            job.place(call.new),
            job.seen,
            job.site.layers,
            job.held,
            call.settings.keep,
        )
        _put(job, call.new, leaf, None)
        entries[k] = _direct(job, call, leaf, None, result)
    return entries


def _by_pattern(jobs: dict[int, _Job], call: _Call) -> dict[int, SiteReport]:
    """Writes the sites' exact budgets and says what they are."""
    entries, (old, new, settings, _, _) = {}, call
    stacks, shares = [], []
    for job in jobs.values():
        assert isinstance(job.method, Reconstruct)
        asked = job.method.downstream or 0.0
        place, lanes = job.place(old), job.site.layers
        seen, share = layers.exact(place, job.seen, job.held, lanes, asked)
        shares.append(share)
        stacks.append((job.method, seen, job.relu, job.bias == "free"))
    answers = batching.reconstruct_all(
        stacks, settings.memory, lambda solved: settings.show(solved, "solving")
    )
    for (k, job), answer, share in zip(jobs.items(), answers, shares, strict=True):
        W, move = (a.reshape(-1, *a.shape[2:]) for a in answer)
        places = job.place(old), job.place(new)
        leaf, bias, result = layers.by_pattern(
            *places, job.seen, W, move, job.site.layers, job.held, settings.keep
        )
        _put(job, new, leaf, bias)
        entries[k] = _direct(job, call, leaf, bias, result, downstream=share)
    return entries


def _by_refit(jobs: dict[int, _Job], call: _Call) -> dict[int, SiteReport]:
    """Writes the best values on the sites' supports and says what they are."""
    entries, (old, new, settings, fed, _) = {}, call
    for k, job in jobs.items():
        assert isinstance(job.method, Refit)
        support = job.method.support
        # of a program without slack only the response counts; a fed layer's target is
        # the trained answer, not the limit that its cascade program allows
        exact = NetTrim(epsilon=0.0, bias=job.method.bias)
        program, _ = job.program(exact, old, fed=False)
        chunk = batching.lanes_at_once(program, settings.memory)
        start = layers.start(job.place(old), job.seen, support)
        still = jnp.zeros_like(start[:, 0])
        W, move = batching.refit_stack(program, start, still, chunk, support)
        leaf, bias, result = layers.by_refit(
            job.place(old),
            job.place(new),
            job.seen,
            support,
            W,
            move,
            job.relu,
            job.held,
            fed,
        )
        _put(job, new, leaf, bias)
        entries[k] = _direct(job, call, leaf, bias, result)
        settings.show(len(entries), "fitting")
    return entries


def _put(job: _Job, new: list[Array], leaf: Array, bias: Array | None) -> None:
    new[job.site.leaf] = leaf
    if bias is not None and job.site.bias is not None:
        new[job.site.bias[0]] = bias


def _direct(
    job: _Job,
    call: _Call,
    leaf: Array,
    bias: Array | None,
    result: Array,
    **more: Array,
) -> SiteReport:
    """The entry of a site without a certificate, from a code per lane."""
    measured = _measure(job, call.old, leaf, bias)
    none, steps = jnp.full((), jnp.nan), jnp.zeros((), jnp.int32)
    figures = {"epsilon": none, "gap": none, "violation": none, **more}
    # NaN has the smaller code of the two
    return _entry(job, measured, result=jnp.min(result), steps=steps, **figures)


def _measure(
    job: _Job, old: Sequence[Array], leaf: Array, bias: Array | None
) -> Measured:
    place, channels = job.place(old), job.site.channels
    return layers.measure(place, job.seen, leaf, bias, job.relu, job.held, channels)


def _entry(job: _Job, measured: Measured, **figures: Array) -> SiteReport:
    site = job.site
    lanes, d_in, d_out = site.index.shape
    figures = {"downstream": jnp.zeros(()), **figures}
    return SiteReport(
        path=site.path,
        kind=site.kind,
        response=site.response,
        shape=(lanes, job.seen.X.shape[1] - job.held, d_in, d_out),
        size=site.index.size,
        **figures,
        **measured._asdict(),
    )
