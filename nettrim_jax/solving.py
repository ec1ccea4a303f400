"""Some sites together: a program or a rule for each, solved, written back, measured.

The stretch of a pruning that both modes share. Knows sites, methods and the solver;
runs no network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from nettrim_jax import batching, layers
from nettrim_jax.activations import Activation
from nettrim_jax.criteria import Rule
from nettrim_jax.layers import Measured, Place
from nettrim_jax.masks import Entries
from nettrim_jax.methods import Method, NetTrim
from nettrim_jax.programs import Program
from nettrim_jax.report import SiteReport
from nettrim_jax.results import ProgramError
from nettrim_jax.settings import ADMM
from nettrim_jax.solutions import Solution
from nettrim_jax.tracing import Graph, Site
from nettrim_jax.typing import Array


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
    asked: Mapping[int, Method],
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
      asked: the sites' methods, by position.
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
    solved = {k: job for k, job in jobs.items() if isinstance(job.method, NetTrim)}
    made = [job.program(old, fed) for job in solved.values()]
    stacks = [program for program, _ in made]
    mine = {k: m for k, m in asked.items() if isinstance(m, NetTrim)}
    solutions = _solve(mine, stacks, settings, starts)
    answers = {
        k: (solution, budget)
        for k, solution, (_, budget) in zip(solved, solutions, made, strict=True)
    }
    return {
        k: _finish(job, old, new, *answers[k], settings.keep)
        if k in answers
        else _by_rule(job, old, new, settings.keep)
        for k, job in jobs.items()
    }


class _Job(NamedTuple):
    """One site with its method and what it saw."""

    site: Site
    method: Method
    seen: Activation
    held: int  # rows kept from the solver

    @property
    def relu(self) -> bool:
        return self.site.response == "relu"

    @property
    def bias(self) -> str:
        return self.method.bias if self.site.bias is not None else "fixed"

    def program(self, old: Sequence[Array], fed: bool) -> tuple[Program, Array]:
        assert isinstance(self.method, NetTrim)
        try:
            return layers.program(
                self.method.of_channels(self.site.channels),
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
            solutions[i] = batching.refit_stack(stacks[i], solutions[i], chunk)
    return solutions


def _finish(
    job: _Job,
    old: list[Array],
    new: list[Array],
    solution: Solution,
    budget: Array,
    keep: bool,
) -> SiteReport:
    """Writes one solution into ``new`` and says what it is."""
    leaf, bias = layers.write(
        job.place(new), job.seen, solution, job.bias, job.held, keep
    )
    new[job.site.leaf] = leaf
    if bias is not None and job.site.bias is not None:
        new[job.site.bias[0]] = bias
    measured = _measure(job, old, leaf, bias)
    stats, certificate = solution.stats, solution.certificate
    return _entry(
        job,
        measured,
        epsilon=jnp.max(budget),
        result=jnp.max(solution.result),
        steps=jnp.max(stats.steps),
        gap=jnp.max(certificate.gap),
        violation=jnp.max(certificate.violation),
    )


def _by_rule(job: _Job, old: list[Array], new: list[Array], keep: bool) -> SiteReport:
    """Writes what a rule leaves of one site into ``new`` and says what it is."""
    assert isinstance(job.method, Rule)
    lanes = job.site.uses[0].folding.lanes
    leaf, result = layers.by_rule(
        job.method,
        job.place(old),
        job.place(new),
        job.seen,
        job.site.index.shape[0] // lanes,
        job.held,
        keep,
    )
    new[job.site.leaf] = leaf
    measured = _measure(job, old, leaf, None)
    none, steps = jnp.full((), jnp.nan), jnp.zeros((), jnp.int32)
    figures = {"epsilon": none, "gap": none, "violation": none}
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
    return SiteReport(
        path=site.path,
        kind=site.kind,
        response=site.response,
        shape=(lanes, job.seen.X.shape[1] - job.held, d_in, d_out),
        size=site.index.size,
        **figures,
        **measured._asdict(),
    )
