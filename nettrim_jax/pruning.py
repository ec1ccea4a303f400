"""``prune``: takes params, apply_fn and a batch; returns params, mask and report.

The pipeline is options, model, data, selection, the route of the pruning, report.
Knows all packages; no package knows it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nettrim_jax import _checks, _progress, _sharding, selection
from nettrim_jax._progress import Progress
from nettrim_jax._trees import known
from nettrim_jax.allocation import routes
from nettrim_jax.bounds import output
from nettrim_jax.calibration import infinities
from nettrim_jax.calibration.batches import Part, Source, parts, stream
from nettrim_jax.calibration.model import Model
from nettrim_jax.calibration.padding import require_followed
from nettrim_jax.convex.config import ADMM
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.base import Method
from nettrim_jax.methods.budget import Metric
from nettrim_jax.methods.refit import read
from nettrim_jax.report import Report
from nettrim_jax.selection import Asked, Selector
from nettrim_jax.tracing.sites import Network, require_sites
from nettrim_jax.typing import (
    ApplyFn,
    Array,
    ArrayLike,
    Batch,
    LeafPath,
    Params,
    Weights,
)


class Pruned(NamedTuple):
    """The result of :func:`prune`.

    Attributes:
      params: the new params, with the given tree, shapes and dtypes; removed weights
        are exact zeros.
      mask: a tree of bool like ``params``: False where a weight was removed, and True
        for all other entries, such as those of biases, even if they are zero.
      report: the pruned layers, the leaves left alone, and the change of the output.
    """

    params: Params
    mask: Params
    report: Report


@_sharding.own()
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
    revive: bool = False,
    within: Params | None = None,
    batches: int | None = None,
    deviation: ArrayLike | None = None,
    drop: ArrayLike | None = None,
    metric: Metric | None = None,
) -> Pruned:
    r"""Prunes the linear layers of a trained network, by default with Net-Trim.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad
        \|(X W + t - Y)_\Omega\|_F \le \epsilon \|Y\|_F, \quad
        (X W + t)_{ij} \le 0 \;\text{off}\; \Omega

    is the program of one layer, with its inputs ``X`` in the trained network, its
    offset ``t``, its trained response ``Y`` after the ReLU, and :math:`\Omega` where
    ``Y`` is positive; without a ReLU :math:`\Omega` is all entries. It needs no labels
    and no retraining. (Aghasi et al., 2017.)

    Every new leaf, and its mask, has the sharding of the given one, whether the axes
    of the mesh are explicit or automatic.

    ``prune`` is a pure function. It works within ``jax.jit``, under ``jax.vmap`` over a
    stack of params, and under ``jax.grad``; values raise no errors there, and the codes
    are in the report. Derivatives are those of the solutions: NaN where a solve did not
    converge, and otherwise as exact as ``solver.tol`` makes the solutions.

    Args:
      params: a pytree of arrays; leaves of other types stay as they are.
      apply_fn: the network, ``apply_fn(params, batch)``. Its outputs are compared
        before and after, and ``Reconstruct`` differentiates them.
      batch: the second argument of ``apply_fn``; or an iterator or a loader of such
        batches, which is read once, and to its end: one without an end needs
        ``batches``. In parallel mode memory grows with ``rows`` and not with the number
        of batches; in cascade mode all batches are kept. Each new shape of a batch
        takes a compilation: pad batches to one shape, and give ``weights``.
      method: ``NetTrim()`` by default; or another method, a pattern (which means
        ``Reconstruct(pattern)``), or a dict from regular expressions (``re.search`` on
        a leaf's path, or on that of an object with nothing but this leaf; the first
        match wins) to these or ``None``.
        ``NetTrim(deviation=...)`` or ``drop``, or that of a method with a pattern,
        splits the batch and solves on half of its rows, or on three quarters if they
        are few; all batches of a loader are kept. ``Sparsity(scope="network")`` does
        the same to choose how many weights each layer keeps, and then solves for these
        on all rows, except with methods that compare all weights, as ``Magnitude``.
      mode: ``"parallel"``: every layer has inputs from the trained network.
        ``"cascade"``: in order of execution, every layer has inputs from the network as
        pruned so far, and targets from the trained one. (Experts behind
        ``jax.lax.ragged_dot`` are pruned as in parallel mode, since pruned layers
        before them may send them other rows.)
      solver: the solver's settings, ``ADMM()`` by default.
      rows: largest number of rows (samples, positions) per layer, drawn uniformly.
      held_out: share of those rows that no solver sees, in [0, 1).
      weights: an array over the first axes of the rows, or a function of the batch
        that returns one; rows of weight zero (padding) do not count.
      include: a regular expression to find in a layer's path, or a function of a
        :class:`SiteInfo` that is true for the layers to prune. A matrix that is also
        looked up by index, as a tied embedding is, is only pruned if selected here.
      exclude: the same, for the layers not to prune.
      key: seed of the random draws, an integer or a PRNG key.
      on_failure: for layers whose solve did not converge: ``"raise"`` an error,
        ``"warn"``, or ``"keep"`` them as trained. Rounding that ends a solve within ten
        times ``tol`` is a warning in any case.
      progress: ``None``: a bar on a terminal only; ``True`` or ``False``: a bar or
        none; or a function ``(done, total, what)`` of layers, where ``what`` also
        counts the batches that are read.
      memory: number of bytes that one call of the solver may take; lanes that do not
        fit are solved in turns, as are lanes that fill a CPU core.
      bound: whether to bound the movement of the output on the batch (the first one of
        a loader) by the theorems, as ``report.bound``, ``report.tight_bound`` and
        ``report.frobenius_bound``. This takes some forward passes and a compilation.
      revive: whether weights that are zero in ``params`` may come back. By default the
        choice is among the others, so a 2:4 network stays one, and a level below the
        present one leaves what is there. A layer of zeros alone was never trained, and
        is pruned like any other.
      within: a tree like ``params``, with zero or False for weights that have to be
        zero, such as the ``mask`` of an earlier pruning; leaves of other entries are
        ignored.
      batches: the largest number of batches to take from an iterator or a loader; by
        default all.
      deviation: in the place of a method, the largest relative change of the network's
        output. Each layer is pruned as far as this allows, by an exact pattern or by
        Net-Trim (:class:`nettrim_jax.Sparsest`).
      drop: the same as the largest fall of ``metric``, in its own units.
      metric: the function ``metric(params, batch)`` of ``drop``, the larger the better.

    Returns:
      The sparse params, which replace the given ones, the mask, and the report.

    Raises:
      NetTrimError: an argument is not valid, or a solve failed; the message has the
        place, the expected and the given value, and what to do. A
        :class:`SolveError <nettrim_jax.results.SolveError>` has what was reached, as
        its attribute ``pruned``.

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
    method = selection.within_budget(method, deviation, drop, metric)
    solver = _checks.arguments(
        mode=mode,
        solver=solver,
        rows=rows,
        held_out=held_out,
        on_failure=on_failure,
        memory=memory,
        bound=bound,
        revive=revive,
        batches=batches,
    )
    inside = None if within is None else _read(params, within)
    cascade = mode == "cascade"
    model = Model(params, apply_fn)
    counter = _progress.Counter(progress, model.traced)
    given = stream(batch, batches, counter)
    source = Source(model, given, _checks.random_key(key), weights)
    route = routes.plan(selection.wishes(method), source, cascade=cascade)
    wanted = {"method": method, "include": include, "exclude": exclude}
    choose = functools.partial(selection.choose, **wanted, cascade=cascade)
    start = begin(route.source, choose, counter, inside or ())
    options = Options(
        *(solver, int(rows), held_out, on_failure == "keep", memory, cascade),
        *(start.show, revive, inside),
    )
    came = routes.follow(route, start.parts, start.asked, options)
    sites = tuple(came.reports[k] for k in sorted(came.reports))
    network, moved = start.first.network, came.deviation
    more = {"notes": network.notes, **came.extra}
    report = Report(sites, start.skipped, moved, **more)
    report = _bounded(report, start, came.leaves, cascade) if bound else report
    kept = came.kept(network)
    report = _sharding.typed(report, start.meshes)
    pruned = Pruned(model.give(came.leaves), model.fill(kept), report)
    # epsilon, key or weights may be traced where params and batch are not
    if _checks.readable(report):
        _checks.converged(pruned, on_failure, solver)
        _checks.known_deviation(report)
    return pruned


def _read(params: Params, within: Params) -> list[Any]:
    """The mask of each array of the params; raises ParamsError if it does not fit."""
    call = "prune(params, apply_fn, batch, within=mask)"
    return list(read(params, within, "prune(within)", call))


Chosen = tuple[dict[int, Method], tuple[tuple[LeafPath, str], ...]]


class Start(NamedTuple):
    """A traced network with its data, and the method of each site to prune."""

    first: Part
    parts: Iterable[Part]  # all parts, including the first
    asked: dict[int, Method]
    skipped: tuple[tuple[LeafPath, str], ...]
    show: Callable[[int, str], None]
    meshes: set[Any]  # with explicit axes, of params and batch


def begin(
    source: Source,
    choose: Callable[[Network], Chosen],
    counter: _progress.Counter,
    given: Sequence[Any] = (),
) -> Start:
    """Traces the first batch and chooses the method of each site to prune.

    Progress is shown unless params, batch or ``given`` are traced by JAX.
    """
    others = parts(source)
    first = next(others)
    require_sites(first.network)
    asked, skipped = choose(first.network)
    moves = {k: method.bias != "fixed" for k, method in asked.items()}
    infinities.require_finite_weights(first, moves)
    for k in asked:
        require_followed(first.network, first.weights, k)
    arrays = [*source.model.leaves, *first.batch, *given]
    traced = not all(known(array) for array in arrays)
    show = counter.layers(len(asked), traced)
    meshes = _sharding.meshes_of((source.model.given, first.given))
    every = itertools.chain([first], others)
    return Start(first, every, asked, skipped, show, meshes)


def _bounded(report: Report, start: Start, new: list[Array], cascade: bool) -> Report:
    """The report with the theorems' bounds, on the batch of its deviation."""
    part = start.first
    sites = [part.network.sites[k] for k in start.asked]
    changed = {site.leaf for site in sites} | {
        site.bias[0] for site in sites if site.bias
    }
    old = part.model.leaves
    # where units go, so do entries that no site has
    both = enumerate(zip(old, new, strict=True))
    changed |= {k for k, (was, now) in both if was is not now}
    found = output.find(part.network, old, new, part.batch, frozenset(changed), cascade)
    bounds = {
        "bound": found.theorem,
        "tight_bound": found.tight,
        "frobenius_bound": found.frobenius,
    }
    known = {name: bound for name, bound in bounds.items() if bound is not None}
    return dataclasses.replace(report, **known, bound_stop=found.stop)
