"""``refit``: the best values for a mask that is given, by the stream of ``prune``.

Knows masks and the stages of a pruning.
"""

import itertools

import jax
import jax.numpy as jnp

from nettrim_jax import _checks, selection
from nettrim_jax import _progress as bars
from nettrim_jax._progress import Progress
from nettrim_jax.calibration import batches
from nettrim_jax.calibration.batches import Weights
from nettrim_jax.convex.programs import known
from nettrim_jax.execution.engine import Settings
from nettrim_jax.methods import refit as supports
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.pruning import (
    Pruned,
    filled,
    in_cascade,
    in_parallel,
    kept_leaves,
)
from nettrim_jax.report import Report
from nettrim_jax.results import ParamsError
from nettrim_jax.selection import Selector
from nettrim_jax.tracing.sites import is_array, require_sites
from nettrim_jax.typing import ApplyFn, Array, Batch, Params


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
) -> Pruned:
    r"""The best values for the weights that a mask keeps, whoever made it.

    .. math::
        \min_{W, b} \; \tfrac12 \|(X W + b + t - Y)_\Omega\|_F^2
        + \tfrac12 \|\max(X W + b + t, 0)_{\text{off}}\|_F^2
        \quad\text{s.t.}\quad W_{ij} = 0 \;\text{where}\; M_{ij} = 0

    per layer, with ``Y`` what the trained network answers after its ReLU,
    :math:`\Omega = \{Y > 0\}` and ``X`` what feeds it; over all entries where no ReLU
    follows, which is least squares. Convex, by semi-smooth Newton steps that stop when
    one gains less than a thousandth. On the rows it sees, no unit errs more than with
    the trained values that the mask keeps. Needs no labels.

    A layer of which all is kept stays as trained, every bit; so does a unit, unless
    layers that changed feed it. It works within ``jax.jit`` and under ``jax.vmap`` over
    params or masks, where nothing raises on values.

    Args:
      params: the trained params, before anything was removed, a pytree of arrays.
      mask: the tree of the params; zero or False where weights are to be zero, as
        ``Pruned.mask`` has it. Only weights of the layers fitted here can be removed.
        What is no array is passed over.
      apply_fn: the network, ``apply_fn(params, batch)``.
      batch: what ``apply_fn`` takes, or a loader of such batches.
      mode: ``"parallel"``: every layer from the trained network's own activations.
        ``"cascade"``: in order of execution, inputs from the network as fitted by then,
        targets from the trained one.
      rows: at most so many rows (samples, positions) per layer, drawn without bias.
      held_out: share of those rows that no fit sees, in [0, 1).
      weights: as for :func:`prune`.
      include: as for :func:`prune`.
      exclude: as for :func:`prune`.
      key: seed of the drawing, an integer or a PRNG key.
      on_failure: for layers that meet what is not a number, ``"raise"``, ``"warn"`` or
        ``"keep"`` the trained values under the mask, which the latter two have then.
      progress: as for :func:`prune`.
      memory: bytes that one call may take.
      bias: ``"free"``: a layer's own bias moves. ``"fixed"``: it stays.

    Returns:
      Params that are zero where the mask is, the mask of what is not zero, and the
      report, with the code ``direct``: there is no budget and so no certificate.

    Raises:
      NetTrimError: with what, where, expected and got, and what to do.

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
    solver = _checks.arguments(
        mode, None, rows, held_out, on_failure, memory, caller="refit"
    )
    supports.check_bias(bias)
    _checks.finite("params", params, ParamsError)
    keeps = supports.read(params, mask)
    key = _checks.random_key(key, "refit")
    parts = batches.parts(apply_fn, params, batch, key, weights)
    first = next(parts)
    require_sites(first.graph)
    # a stand-in: selection asks only whether biases move
    method = NetTrim(epsilon=0.0, bias=bias)
    chosen, skipped = selection.choose(first.graph, method, include, exclude)
    asked = supports.by_site(first.graph, chosen, skipped, keeps, bias)

    everything, tree = jax.tree.flatten(params)
    old = [jnp.asarray(leaf) for leaf in everything if is_array(leaf)]
    supports.warn_if_pruned(old, keeps)
    traced = not all(known(leaf) for leaf in [*old, *keeps, *first.batch])
    show = bars.start(progress, len(asked), traced)
    settings = Settings(solver, int(rows), held_out, True, memory, show)
    run = in_cascade if mode == "cascade" else in_parallel
    every = itertools.chain([first], parts)
    new, entries, deviation = run(every, old, asked, settings)
    report = Report(tuple(entries[k] for k in asked), skipped, deviation)
    if all(known(site.result) for site in report.sites):
        _checks.fitted(report, on_failure)
    new = [supports.hold(leaf, keep) for leaf, keep in zip(new, keeps, strict=True)]
    kept = kept_leaves(first.graph, tuple(asked), new)
    kept = [one & keep for one, keep in zip(kept, keeps, strict=True)]
    return Pruned(filled(tree, everything, new), filled(tree, everything, kept), report)
