"""``refit``: the best values for a mask that is given, by the pipeline of ``prune``.

Knows masks and the steps of a pruning.
"""

from nettrim_jax import _checks, selection
from nettrim_jax._progress import Progress
from nettrim_jax._trees import known
from nettrim_jax.calibration.batches import Source, Weights
from nettrim_jax.calibration.model import Model
from nettrim_jax.execution import orders
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.methods.refit import by_site, check_bias, hold, read, warn_if_pruned
from nettrim_jax.pruning import Chosen, Pruned, begin
from nettrim_jax.report import Report
from nettrim_jax.selection import Selector
from nettrim_jax.tracing.entries import kept_leaves
from nettrim_jax.tracing.sites import Network
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
        mode=mode,
        solver=None,
        rows=rows,
        held_out=held_out,
        on_failure=on_failure,
        memory=memory,
        caller="refit",
    )
    # a stand-in: selection asks only whether biases move
    method = NetTrim(epsilon=0.0, bias=check_bias(bias))
    model = Model(params, apply_fn)
    keeps = read(params, mask)
    source = Source(model, batch, _checks.random_key(key, "refit"), weights)

    def choose(network: Network) -> Chosen:
        chosen, skipped = selection.choose(network, method, include, exclude)
        return by_site(network, chosen, skipped, keeps, bias), skipped

    start = begin(source, choose, progress, keeps)
    warn_if_pruned(model.leaves, keeps)
    options = Options(
        solver, int(rows), held_out, True, memory, mode == "cascade", start.show
    )
    new, outcomes, deviation = orders.run(start.parts, start.asked, options)
    sites = tuple(outcomes[k].report for k in start.asked)
    report = Report(sites, start.skipped, deviation)
    if all(known(site.result) for site in report.sites):
        _checks.fitted(report, on_failure)
    new = [hold(leaf, keep) for leaf, keep in zip(new, keeps, strict=True)]
    kept = kept_leaves(start.first.network, start.asked, new)
    kept = [one & keep for one, keep in zip(kept, keeps, strict=True)]
    return Pruned(model.fill(new), model.fill(kept), report)
