"""``prune``: params, apply_fn and a batch in; sparse params, mask and report out.

The stream: trace the layers, capture what they see, make a program of each, solve
all of one shape together, write the answers back, measure. The one room that knows
both models and the solver.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _checks, selection
from nettrim_jax import _progress as bars
from nettrim_jax._progress import Progress
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation import deviation as steering
from nettrim_jax.allocation import levels
from nettrim_jax.allocation.evaluation import Meter, deviation_of
from nettrim_jax.bounds import output as bounds
from nettrim_jax.calibration import batches as loading
from nettrim_jax.calibration import cascade, splits
from nettrim_jax.calibration.batches import Part, Weights
from nettrim_jax.calibration.capture import Activation, capture, gather
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.programs import known
from nettrim_jax.execution.engine import Settings, Task, prune_sites
from nettrim_jax.methods.nettrim import Asked, Method
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.report import Report, SearchStep, SiteReport
from nettrim_jax.results import ParamsError
from nettrim_jax.selection import Selector
from nettrim_jax.tracing import entries as masks
from nettrim_jax.tracing.sites import Graph, is_array, require_sites
from nettrim_jax.typing import ApplyFn, Array, Batch, Params


class Pruned(NamedTuple):
    """What :func:`prune` gives back.

    Attributes:
      params: same tree, shapes and dtypes; removed weights are exact zeros.
      mask: same tree, bool: False where a weight was removed, True for all else, such
        as biases, be they zero or not.
      report: the layers, what was left alone, and how far the output moved.
    """

    params: Params
    mask: Params
    report: Report


def prune(
    params: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    *,
    method: Asked | Mapping[str, Asked | None] | None = None,
    mode: str = "parallel",
    solver: ADMM | None = None,
    rows: int = 4096,
    held_out: float = 0.1,
    weights: Weights | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
    key: int | Array = 0,
    on_failure: str = "raise",
    progress: Progress = None,
    memory: int = 2**31,
    bound: bool = False,
) -> Pruned:
    r"""Prunes every linear layer of a trained network by Net-Trim's convex program.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad
        \|(X W + t - Y)_\Omega\|_F \le \epsilon \|Y\|_F, \quad
        (X W + t)_{ij} \le 0 \;\text{off}\; \Omega

    per layer, with ``X`` what the trained network feeds it and ``Y`` what it answers
    after its ReLU; over all entries where no ReLU follows. Needs no labels and no
    retraining. (Aghasi et al., 2017.)

    It is a pure function: it works within ``jax.jit``, under ``jax.vmap`` over a
    stack of params and under ``jax.grad``; there nothing raises on values, and the
    codes are in the report. Derivatives are those of the solutions: NaN where a solve
    did not converge, and as exact as ``solver.tol`` lets the solutions be.

    Args:
      params: a pytree of arrays; leaves of other kinds stay as they are.
      apply_fn: the network, ``apply_fn(params, batch)``; what it returns is
        compared before and after, and exact budgets ask what moves it.
      batch: what ``apply_fn`` takes; or an iterator or loader of such batches, read
        once. In parallel mode memory grows with ``rows`` and not with the number of
        batches; in cascade mode all of them are kept.
      method: ``NetTrim()`` by default, one of the other methods, a pattern (which
        means ``Reconstruct(pattern)``), or a dict from regular expressions
        (``re.search`` on a leaf's path, first match wins) to one of these or ``None``.
        With ``NetTrim(deviation=...)`` or ``drop`` the batch is
        dealt out, and half of its rows are solved on; all batches of a loader are kept.
        So it is with ``Sparsity(scope="network")`` (but by ``Magnitude``), only to
        choose how many weights each layer keeps; these are then solved for on all rows.
      mode: ``"parallel"``: every layer from the trained network's own activations.
        ``"cascade"``: in order of execution, inputs from the network as pruned by
        then, targets from the trained one. (Experts behind ``jax.lax.ragged_dot`` are
        pruned as in parallel mode: what comes before may now send them other rows.)
      solver: ``ADMM()`` by default.
      rows: at most so many rows (samples, positions) per layer, drawn without bias.
      held_out: share of those rows that no solver sees, in [0, 1).
      weights: a prefix of the rows' axes; rows of weight zero (padding) do not count.
        Or a function of the batch that gives them.
      include: only layers whose path this regular expression finds, or for which this
        function of a :class:`SiteInfo` is true. A matrix that is also looked up by
        index, as a tied embedding is, is pruned only if this says so.
      exclude: no layer that this regular expression or function finds.
      key: seed of the drawing, an integer or a PRNG key.
      on_failure: for layers whose solve did not converge, ``"raise"``, ``"warn"``, or
        ``"keep"`` them as trained.
      progress: ``None``: a bar on a terminal only; ``True``, ``False``, or a function
        ``(done, total, what)``.
      memory: bytes that one call of the solver may take; more lanes than fit are
        solved in turns, as are lanes that fill a CPU core.
      bound: whether to bound the output's movement on the batch (the first one of a
        stream) by the theorems, as ``report.bound``; it takes some forward passes and a
        compilation.

    Returns:
      Sparse params that drop back into the network, the mask, and the report.

    Raises:
      NetTrimError: with what, where, expected and got, and what to do.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> x = jax.random.normal(jax.random.key(1), (200, 8))
      >>> apply_fn = lambda params, x: jax.nn.relu(x @ params["w"])
      >>> pruned = nt.prune(params, apply_fn, x, method=nt.NetTrim(epsilon=0.3))
      >>> pruned.report.sites[0].path, pruned.report.sites[0].response
      ('w', 'relu')
      >>> bool(pruned.report.sites[0].error <= 0.3 + 1e-3)
      True
    """
    solver = _checks.arguments(mode, solver, rows, held_out, on_failure, memory, bound)
    _checks.finite("params", params, ParamsError)
    key, dealt = _checks.random_key(key), None
    methods = list(method.values()) if isinstance(method, Mapping) else [method]
    budget, shared = budgets.common(methods), levels.searches(methods)
    given = params, key, weights, batch
    if shared:
        splits.concrete(given, "Sparsity(scope='network')", "take scope='layer'")
        batch = loading.Stored(batch) if loading.is_loader(batch) else batch
    if budget is not None:
        splits.concrete(given, "NetTrim(deviation=..., drop=...)", "give an epsilon")
        dealt = splits.deal(batch, weights, key)
        batch, weights = dealt.solve, dealt.weights
    parts = loading.parts(apply_fn, params, batch, key, weights)
    first = next(parts)
    graph = first.graph
    require_sites(graph)
    asked, skipped = selection.choose(graph, method, include, exclude)
    asked = {
        k: m.of_mode(mode == "cascade") if isinstance(m, Reconstruct) else m
        for k, m in asked.items()
    }
    shared = levels.searches(asked.values())

    everything, tree = jax.tree.flatten(params)
    old = [jnp.asarray(leaf) for leaf in everything if is_array(leaf)]
    traced = not all(known(leaf) for leaf in [*old, *first.batch])
    show = bars.start(progress, len(asked), traced)
    settings = Settings(solver, int(rows), held_out, on_failure == "keep", memory, show)

    every, extra = itertools.chain([first], parts), {}

    def meter(batches: list[Batch], share: float) -> Meter:
        rows = list(loading.parts(apply_fn, params, iter(batches), key, None))
        fill = functools.partial(filled, tree, everything)
        return Meter(budget, rows, batches, old, fill, share)

    asked = levels.by_magnitude(graph, asked, old)
    if shared:
        half = splits.deal(batch, weights, key, folds=1)
        rest = loading.parts(apply_fn, params, half.solve, key, half.weights)
        seen, meters = _seen(rest, old, asked, settings)[1], (half.steer, half.check)
        asked, extra["split"] = levels.search(
            graph, asked, seen, old, settings, *(meter(rows, 1.0) for rows in meters)
        )
    if budget is not None and dealt is not None:
        steer = meter(dealt.steer, dealt.share)
        (new, entries, deviation), search = _within(
            list(every), old, asked, settings, mode, steer
        )
        checked = jnp.asarray(meter(dealt.check, 1.0).read(new).value, jnp.float32)
        most = jnp.asarray(budget.most, jnp.float32)
        extra = {"budget": most, "checked": checked, "measure": budget.measure}
        extra["search"] = search
    else:
        run = in_cascade if mode == "cascade" else in_parallel
        new, entries, deviation = run(every, old, asked, settings)
    report = Report(tuple(entries[k] for k in asked), skipped, deviation, **extra)
    if bound:
        report = _bounded(report, first, asked, old, new, mode == "cascade")
    # epsilon, key or weights may be traced where params and batch are not
    if all(known(site.result) for site in report.sites):
        _checks.converged(report, on_failure, solver)
    kept = kept_leaves(graph, tuple(asked), new)
    return Pruned(filled(tree, everything, new), filled(tree, everything, kept), report)


_Pruning = tuple[list[Array], dict[int, SiteReport], Array]


def in_parallel(
    parts: Iterable[Part],
    old: list[Array],
    asked: Mapping[int, Task],
    settings: Settings,
) -> _Pruning:
    """Every layer from the trained network's own activations, all solved together."""
    first, seen = _seen(parts, old, asked, settings)
    new = list(old)
    entries = prune_sites(first.graph, asked, seen, old, new, settings, fed=False)
    # both by one program: what capture compiles to rounds in another way
    return new, entries, deviation_of(first.outputs(old), first.outputs(new))


def _within(
    parts: list[Part],
    old: list[Array],
    asked: Mapping[int, Method],
    settings: Settings,
    mode: str,
    meter: Meter,
) -> tuple[_Pruning, tuple[SearchStep, ...]]:
    """As far as a budget of the whole network allows, and what was tried."""
    first, seen = _seen(parts, old, asked, settings)
    found = steering.search_parallel(first.graph, asked, seen, old, settings, meter)
    if mode == "cascade":
        quiet = settings._replace(keep=True, show=lambda done, what: None)

        def run(methods: Mapping[int, Method]) -> tuple[list[Array], dict]:
            if not methods:
                return list(old), {}
            return in_cascade(parts, old, methods, quiet)[:2]

        found = steering.search_cascade(
            found, first.graph, asked, seen, old, run, meter
        )
    deviation = deviation_of(first.outputs(old), first.outputs(found.new))
    return (found.new, found.entries, deviation), found.steps


def _seen(
    parts: Iterable[Part],
    old: list[Array],
    asked: Mapping[int, Task],
    settings: Settings,
) -> tuple[Part, tuple[Activation, ...]]:
    """The first part, and what the trained network's layers see in all of them."""
    settings.show(0, "activations")
    chosen, rows, moments = tuple(asked), settings.rows, _moments(asked)
    measured = _measured(asked)
    first: list[Part] = []

    def captured(part: Part) -> tuple[Activation, ...]:
        graph, batch, key, weights = part
        if not first:
            first.append(part)
        seen, _ = capture(
            graph, chosen, rows, graph.consts, old, batch, key, weights, moments
        )
        metrics = part.sensitivities(measured, old)
        return tuple(
            one._replace(metric=metrics.get(k))
            for k, one in zip(chosen, seen, strict=True)
        )

    seen = gather(map(captured, parts), rows)
    return first[0], seen


def in_cascade(
    parts: Iterable[Part],
    old: list[Array],
    asked: Mapping[int, Task],
    settings: Settings,
) -> _Pruning:
    """In order of execution, inputs from the network as it is pruned by then."""
    new, entries, rows = list(old), {}, settings.rows
    parts, measured, metrics = list(parts), _measured(asked), {}
    for part in parts:
        found = part.sensitivities(measured, old)
        metrics = {k: M + metrics.get(k, 0) for k, M in found.items()}
    runs = [cascade.Run(*part, tuple(asked), old) for part in parts]
    graph = runs[0].graph
    for at, level in enumerate(runs[0].plan.levels):
        settings.show(len(entries), "activations")
        mine = {k: asked[k] for k in level}
        sums = _moments(mine)
        seen = gather((run.capture(at, old, new, rows, sums) for run in runs), rows)
        seen = [
            one._replace(metric=metrics.get(k))
            for k, one in zip(level, seen, strict=True)
        ]
        entries |= prune_sites(graph, mine, seen, old, new, settings, fed=at > 0)
        for run in runs:
            run.advance(at + 1, old, new)
    settings.show(len(asked), "done")
    return new, entries, deviation_of(*runs[0].outputs(old, new))


def _moments(asked: Mapping[int, Task]) -> tuple[int, ...]:
    """The sites whose methods need the second moments of all rows."""
    return tuple(k for k, method in asked.items() if method.moments)


def _measured(asked: Mapping[int, Task]) -> tuple[int, ...]:
    """The sites whose methods need to know how far errors move the output."""
    return tuple(
        k for k, m in asked.items() if isinstance(m, Reconstruct) and m.downstream
    )


def _bounded(
    report: Report,
    part: Part,
    asked: Mapping[int, Method],
    old: list[Array],
    new: list[Array],
    cascade: bool,
) -> Report:
    """The report with the theorems' bounds on the batch of its deviation."""
    graph = part.graph
    sites = [graph.sites[k] for k in asked]
    changed = {site.leaf for site in sites} | {
        site.bias[0] for site in sites if site.bias
    }
    found = bounds.find(
        graph, graph.consts, old, new, part.batch, frozenset(changed), cascade
    )
    return dataclasses.replace(
        report, bound=found.theorem, tight_bound=found.tight, bound_stop=found.stop
    )


def kept_leaves(
    graph: Graph, chosen: Sequence[int], new: Sequence[Array]
) -> list[Array]:
    """True where an entry is kept; all of a leaf that was not pruned."""
    indices: dict[int, list[np.ndarray]] = {}
    for k in chosen:
        indices.setdefault(graph.sites[k].leaf, []).append(graph.sites[k].index)
    return [
        masks.kept(leaf, indices[i]) if i in indices else jnp.ones(leaf.shape, bool)
        for i, leaf in enumerate(new)
    ]


def filled(tree: Any, everything: Sequence[Any], arrays: Sequence[Array]) -> Any:
    """The pytree with its array leaves replaced and the others as they are."""
    given = iter(arrays)
    leaves = [next(given) if is_array(leaf) else leaf for leaf in everything]
    return jax.tree.unflatten(tree, leaves)
