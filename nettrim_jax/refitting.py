"""``refit``: fits the weights that a given mask keeps, by the pipeline of ``prune``.

Other fits of a network that was pruned go through :func:`adapted`.
Knows masks and the steps of a pruning; no package knows it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nettrim_jax import _checks, _sharding, selection
from nettrim_jax._progress import Counter, Progress
from nettrim_jax.calibration.batches import Source, stream
from nettrim_jax.calibration.model import Model
from nettrim_jax.calibration.outputs import deviation_of
from nettrim_jax.calibration.splits import Dealt, concrete, deal
from nettrim_jax.execution import orders
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.methods.refit import by_site, check_bias, hold, read, warn_if_pruned
from nettrim_jax.pruning import Chosen, Pruned, Start, begin
from nettrim_jax.report import Report
from nettrim_jax.selection import Selector
from nettrim_jax.tracing.entries import kept_leaves
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import ApplyFn, Array, Batch, Params, Weights


class Settings(NamedTuple):
    """How a fit is made, as the user says it; see :func:`refit`."""

    mode: str
    rows: int
    held_out: float
    weights: Weights | None
    key: int | Array
    on_failure: str
    progress: Progress
    memory: int
    batches: int | None

    def options(self, caller: str) -> Options:
        """The options of a run; raises MethodError if one is out of its range."""
        solver = _checks.arguments(
            mode=self.mode,
            solver=None,
            rows=self.rows,
            held_out=self.held_out,
            on_failure=self.on_failure,
            memory=self.memory,
            batches=self.batches,
            caller=caller,
        )
        return Options(
            *(solver, int(self.rows), self.held_out, True, self.memory),
            *(self.mode == "cascade", lambda done, what: None),
        )

    def source(self, model: Model, batch: Batch, caller: str) -> tuple[Source, Counter]:
        """The data of a model, and what counts its batches and layers."""
        counter = Counter(self.progress, model.traced)
        given = stream(batch, self.batches, counter)
        key = _checks.random_key(self.key, caller)
        return Source(model, given, key, self.weights), counter


@_sharding.own()
def refit(
    params: Params,
    mask: Params,
    apply_fn: ApplyFn,
    batch: Batch,
    *,
    mode: str = "parallel",
    rows: int = 4096,
    held_out: float = 0.1,
    weights: Weights | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
    key: int | Array = 0,
    on_failure: str = "raise",
    progress: Progress = None,
    memory: int = 2**31,
    bias: str = "free",
    batches: int | None = None,
) -> Pruned:
    r"""Fits the weights that a given mask keeps, whichever method made the mask.

    .. math::
        \min_{W, b} \; \tfrac12 \|(X W + b + t - Y)_\Omega\|_F^2
        + \tfrac12 \|\max(X W + b + t, 0)_{\text{off}}\|_F^2
        \quad\text{s.t.}\quad W_{ij} = 0 \;\text{where}\; M_{ij} = 0

    is the problem of one layer, with its inputs ``X``, its offset ``t``, its trained
    response ``Y`` after the ReLU, and :math:`\Omega = \{Y > 0\}`. Without a ReLU
    :math:`\Omega` is all entries, and the problem is least squares. The problem is
    convex; semi-smooth Newton steps solve it and stop when one gains less than a
    thousandth. On the rows of the fit, no unit has a larger error than with the trained
    values that the mask keeps. It needs no labels.

    A layer of which the mask keeps all weights stays as trained in every bit; so does
    such a unit, unless changed layers feed it. ``refit`` works within ``jax.jit`` and
    under ``jax.vmap`` over params or masks, where values raise no errors.

    Args:
      params: the trained params from before the pruning, a pytree of arrays.
      mask: a tree like ``params``, with zero or False where weights are to be zero, as
        in ``Pruned.mask``. It may only remove weights of layers that are fitted. Leaves
        that are no arrays are ignored.
      apply_fn: the network, ``apply_fn(params, batch)``.
      batch: the second argument of ``apply_fn``, or a loader of such batches.
      mode: ``"parallel"``: every layer has inputs from the trained network.
        ``"cascade"``: in order of execution, every layer has inputs from the network as
        fitted so far, and targets from the trained one.
      rows: largest number of rows (samples, positions) per layer, drawn uniformly.
      held_out: share of those rows that no fit sees, in [0, 1).
      weights: as for :func:`prune`.
      include: as for :func:`prune`.
      exclude: as for :func:`prune`.
      key: seed of the random draws, an integer or a PRNG key.
      on_failure: for layers with values that are not finite: ``"raise"`` an error, or
        keep the trained values under the mask, with a warning (``"warn"``) or without
        (``"keep"``).
      progress: as for :func:`prune`.
      memory: number of bytes that one call may take.
      bias: ``"free"``: a layer's own bias moves. ``"fixed"``: it stays.
      batches: as for :func:`prune`.

    Returns:
      Params that are zero where the mask is, the mask, and the report. Its codes are
      ``direct``: without a budget there is no certificate.

    Raises:
      NetTrimError: as for :func:`prune`.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> w = jax.random.normal(jax.random.key(0), (8, 4))
      >>> x = jax.random.normal(jax.random.key(1), (200, 8)).at[:, 1:].add(1.0)
      >>> apply_fn = lambda w, x: jax.nn.relu(x @ w)
      >>> magnitude = nt.prune(w, apply_fn, x, method=nt.Magnitude(nt.Sparsity(0.5)))
      >>> fitted = nt.refit(w, magnitude.mask, apply_fn, x)
      >>> bool((fitted.mask == magnitude.mask).all())
      True
      >>> bool(fitted.report.deviation < magnitude.report.deviation)
      True
    """
    settings = Settings(
        *(mode, rows, held_out, weights, key, on_failure, progress, memory, batches)
    )
    options = settings.options("refit")
    # a stand-in: selection asks only whether biases move
    method = NetTrim(epsilon=0.0, bias=check_bias(bias))
    model = Model(params, apply_fn)
    keeps = read(params, mask)
    source, counter = settings.source(model, batch, "refit")

    def choose(network: Network) -> Chosen:
        chosen, skipped = selection.choose(network, method, include, exclude)
        return by_site(network, chosen, skipped, keeps, bias), skipped

    start = begin(source, choose, counter, keeps)
    warn_if_pruned(model.leaves, keeps)
    options = options._replace(show=start.show, revive=True)
    new, outcomes, deviation = orders.run(start.parts, start.asked, options)
    new = [hold(leaf, keep) for leaf, keep in zip(new, keeps, strict=True)]
    report, kept = _found(start, new, outcomes, deviation)
    kept = [one & keep for one, keep in zip(kept, keeps, strict=True)]
    report = _sharding.typed(report, start.meshes)
    pruned = Pruned(model.give(new), model.fill(kept), report)
    _complain(pruned, on_failure, "with the trained values that the mask keeps")
    return pruned


def _found(
    start: Start,
    new: Sequence[Array],
    outcomes: Mapping[int, orders.Outcome],
    deviation: Array,
) -> tuple[Report, list[Array]]:
    """The report of a run, and the mask of every leaf."""
    network, asked = start.first.network, start.asked
    sites = tuple(outcomes[k].report for k in asked)
    report = Report(sites, start.skipped, deviation, notes=network.notes)
    masks = {k: outcome.mask for k, outcome in outcomes.items()}
    return report, kept_leaves(network, asked, new, masks)


def _complain(pruned: Pruned, on_failure: str, left: str) -> None:
    """Raises or warns, as asked, if a layer failed; see :func:`_checks.fitted`."""
    if _checks.readable(pruned.report):
        _checks.fitted(pruned, on_failure, left)
        _checks.known_deviation(pruned.report)


class Fit(NamedTuple):
    """A fit of layers of a pruned network to their own responses; zeros stay zero."""

    params: Params  # of the pruned network
    trained: Params  # a tree like them, to which the outputs are compared
    apply_fn: ApplyFn
    batch: Batch
    settings: Settings
    caller: str  # the function that the user called

    def source(self) -> tuple[Source, Counter]:
        """The data of the pruned network, and what counts its batches and layers."""
        model = Model(self.params, self.apply_fn)
        return self.settings.source(model, self.batch, self.caller)


class Adapted(NamedTuple):
    """A network of which some layers were fitted anew."""

    pruned: Pruned
    start: Start
    before: Array  # relative change of the output from the trained network, as given
    after: Array  # the same of the new network
    leaves: list[Array]  # of the new network


@_sharding.own()
def adapted(fit: Fit, choose: Callable[[Network], Chosen]) -> Adapted:
    """Makes a fit; ``choose`` gives the method of each site of a network."""
    options = fit.settings.options(fit.caller)
    source, counter = fit.source()
    model, beside = source.model, Model(fit.trained, fit.apply_fn)
    start = begin(source, choose, counter, beside.leaves)
    options = options._replace(show=start.show)
    new, outcomes, deviation = orders.run(start.parts, start.asked, options)
    report, kept = _found(start, new, outcomes, deviation)
    first = start.first
    every = [first.outputs(leaves) for leaves in (beside.leaves, model.leaves, new)]
    moved = deviation_of(every[0], every[1]), deviation_of(every[0], every[2])
    report, moved = _sharding.typed((report, moved), start.meshes)
    pruned = Pruned(model.give(new), model.fill(kept), report)
    _complain(pruned, fit.settings.on_failure, "as they are in the pruned network")
    return Adapted(pruned, start, moved[0], moved[1], new)


class Halved(NamedTuple):
    """A network to fit on half of its rows, in order to choose how to fit it on all."""

    source: Source  # all rows, which can be read again
    dealt: Dealt
    start: Start  # on the rows to solve on
    options: Options


@_sharding.own()
def halved(fit: Fit, choose: Callable[[Network], Chosen], asked: str) -> Halved:
    """Deals out the rows of a fit; ``asked`` is the setting that asks for it."""
    options = fit.settings.options(fit.caller)
    source, counter = fit.source()
    values = fit.params, fit.trained, source.key, source.weights, source.batch
    concrete(values, asked, "give bits")
    source = source.stored()
    dealt = deal(source.batch, source.weights, source.key, folds=1)
    start = begin(source.of(dealt.solve, dealt.weights), choose, counter)
    return Halved(source, dealt, start, options._replace(show=start.show))
