"""``prune``: params, apply_fn and a batch in; sparse params, mask and report out.

The pipeline: options, model, data, selection, the route of the pruning, report. Knows
every package; nobody knows it but its like.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nettrim_jax import _checks, _progress, selection
from nettrim_jax._progress import Progress
from nettrim_jax._trees import known
from nettrim_jax.allocation import routes
from nettrim_jax.bounds import output
from nettrim_jax.calibration.batches import Part, Source, Weights, parts
from nettrim_jax.calibration.model import Model
from nettrim_jax.convex.config import ADMM
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.base import Method
from nettrim_jax.report import Report
from nettrim_jax.selection import Asked, Selector
from nettrim_jax.tracing.entries import kept_leaves
from nettrim_jax.tracing.sites import Network, require_sites
from nettrim_jax.typing import ApplyFn, Array, Batch, LeafPath, Params


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
    solver = _checks.arguments(
        mode=mode,
        solver=solver,
        rows=rows,
        held_out=held_out,
        on_failure=on_failure,
        memory=memory,
        bound=bound,
    )
    cascade = mode == "cascade"
    model = Model(params, apply_fn)
    source = Source(model, batch, _checks.random_key(key), weights)
    route = routes.plan(selection.wishes(method), source)

    def choose(network: Network) -> Chosen:
        return selection.choose(network, method, include, exclude, cascade)

    start = begin(route.source, choose, progress)
    options = Options(
        solver, int(rows), held_out, on_failure == "keep", memory, cascade, start.show
    )
    came = routes.follow(route, start.parts, start.asked, options)
    sites = tuple(came.reports[k] for k in start.asked)
    report = Report(sites, start.skipped, came.deviation, **came.extra)
    if bound:
        report = _bounded(report, start.first, start.asked, came.leaves, cascade)
    # epsilon, key or weights may be traced where params and batch are not
    if all(known(site.result) for site in report.sites):
        _checks.converged(report, on_failure, solver)
    kept = kept_leaves(start.first.network, start.asked, came.leaves)
    return Pruned(model.fill(came.leaves), model.fill(kept), report)


Chosen = tuple[dict[int, Method], tuple[tuple[LeafPath, str], ...]]


class Start(NamedTuple):
    """A network with its data, of which it is known what is to be done."""

    first: Part
    parts: Iterable[Part]  # all of them, the first included
    asked: dict[int, Method]
    skipped: tuple[tuple[LeafPath, str], ...]
    show: Callable[[int, str], None]


def begin(
    source: Source,
    choose: Callable[[Network], Chosen],
    progress: Progress,
    given: Sequence[Any] = (),
) -> Start:
    """Traces the first batch and chooses what is to be done with each layer.

    Progress is shown where nothing is traced: params, batch, and what else is given.
    """
    others = parts(source)
    first = next(others)
    require_sites(first.network)
    asked, skipped = choose(first.network)
    arrays = [*source.model.leaves, *first.batch, *given]
    traced = not all(known(array) for array in arrays)
    show = _progress.start(progress, len(asked), traced)
    return Start(first, itertools.chain([first], others), asked, skipped, show)


def _bounded(
    report: Report,
    part: Part,
    chosen: Collection[int],
    new: list[Array],
    cascade: bool,
) -> Report:
    """The report with the theorems' bounds on the batch of its deviation."""
    sites = [part.network.sites[k] for k in chosen]
    changed = {site.leaf for site in sites} | {
        site.bias[0] for site in sites if site.bias
    }
    old = part.model.leaves
    found = output.find(part.network, old, new, part.batch, frozenset(changed), cascade)
    return dataclasses.replace(
        report, bound=found.theorem, tight_bound=found.tight, bound_stop=found.stop
    )
