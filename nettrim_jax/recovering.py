"""``recover``: steps of training that bring a pruned network back to the trained one.

Knows the arguments; no package knows it.
"""

from typing import TYPE_CHECKING, Any

from nettrim_jax import _checks, _progress
from nettrim_jax._progress import Progress
from nettrim_jax.training import teaching
from nettrim_jax.training.recovery import Recovered, RecoverState
from nettrim_jax.training.teaching import Also, Course, Minibatches
from nettrim_jax.typing import ApplyFn, Array, Batch, Params, Weights

if TYPE_CHECKING:
    import optax


def recover(
    pruned: Any,
    params: Params,
    apply_fn: ApplyFn,
    batches: Batch,
    *,
    steps: int = 1000,
    optimizer: "optax.GradientTransformation | None" = None,
    match: str = "output",
    size: int = 64,
    checks: int = 4,
    every: int | None = None,
    also: Also | None = None,
    weights: Weights | None = None,
    state: RecoverState | None = None,
    until: int | None = None,
    key: int | Array = 0,
    progress: Progress = None,
) -> Recovered:
    r"""Trains a pruned network to answer as the trained one does, without labels.

    .. math::
        \min_{\theta:\, \theta = 0 \text{ off the mask}} \;
        \mathbb{E}_x \frac{\|f(\theta, x) - f(\theta_0, x)\|^2}{\|f(\theta_0, x)\|^2}

    over batches :math:`x`, where :math:`f` is all that the network returns and
    :math:`\theta_0` the trained params (as the outputs of a larger network teach a
    smaller one: Ba and Caruana, 2014; Hinton, Vinyals and Dean, 2015). Weights that the
    pruning removed stay exactly zero. What moves are the layers that :func:`prune`
    finds, with their own biases; statistics, norms and embeddings stay.

    The deviation of the output is measured on batches that no step sees. What comes
    back are the params with the least one, so it is never above that of the start.

    Args:
      pruned: what :func:`prune` or :func:`refit` returned, or a smaller network from
        :func:`shrink` or :func:`trim`, whose weights of zero stay zero.
      params: the trained params, from before the pruning.
      apply_fn: the network, ``apply_fn(params, batch)``.
      batches: a loader of batches, which is read again and again (an iterator once);
        or one batch, of which every step takes a piece. Labels in it do not matter
        unless ``apply_fn`` looks at them.
      steps: number of steps in all.
      optimizer: any transformation of optax; it sees the tree of the params, with
        ``optax.MaskedNode()`` in the place of what stays. By default Adam, whose
        learning rate falls from 0.003 to zero by a cosine.
      match: ``"output"``; ``"layers"``: the mean over the layers of the same distance
        of what follows each, behind its ReLU; or ``"both"``: the sum of the two. With
        layers, derivatives that a function declares for itself do not count.
      size: number of samples that a step takes of one batch.
      checks: number of batches (of ``size`` samples of one batch, or the first ones of
        a loader) that measure the deviation and that no step sees.
      every: steps between measurements; by default a tenth of ``steps``.
      also: a regular expression to find in a path, or a function of the path that is
        true, for other floating arrays that move, such as ``r"norm"``.
      weights: as for :func:`prune`: answers at rows of weight zero (padding) count for
        nothing. An array goes with one batch, whose samples it has, or with every batch
        of a loader; a function of the batch with both.
      state: the state of an earlier call, to go on from; with the same other arguments
        the result is that of one call without interruption, in every bit.
      until: the step at which this call ends; by default ``steps``.
      key: seed of the order of samples, an integer or a PRNG key.
      progress: as for :func:`prune`, of steps.

    Returns:
      The params with the least deviation, the mask, the report, and the state.

    Raises:
      MethodError: a setting is not valid.
      ParamsError: the params or the state do not fit the pruned ones.
      BatchError: there are too few samples or batches, or the weights do not fit them.
      LayersError: no layer is found.

    Example:
      >>> import jax
      >>> import nettrim_jax as nt
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {
      ...     "hidden": jax.random.normal(keys[0], (16, 32), "float32"),
      ...     "output": jax.random.normal(keys[1], (32, 4), "float32"),
      ... }
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["hidden"]) @ params["output"]
      >>> x = jax.random.normal(keys[2], (400, 16), "float32")
      >>> pruned = nt.prune(params, apply_fn, x, method=nt.Magnitude(nt.Sparsity(0.5)))
      >>> done = nt.recover(pruned, params, apply_fn, x, steps=50)
      >>> done.report.deviation < done.report.before
      True
      >>> bool((done.params["hidden"][~pruned.mask["hidden"]] == 0).all())
      True
    """
    _checks.at_least(1, "recover", steps=steps, size=size, checks=checks)
    every = max(steps // 10, 1) if every is None else every
    until = steps if until is None else until
    _checks.at_least(1, "recover", every=every)
    _checks.at_least(0, "recover", until=until)
    return teaching.teach(
        teaching.pair_of(pruned, params, apply_fn, match),
        Minibatches(batches, size, checks, _checks.random_key(key, "recover"), weights),
        Course(steps, every, until, optimizer),
        also=also,
        state=state,
        show=_progress.start(progress, steps, False),
    )
