r"""How far an error of each layer moves the network's output, by back-propagation.

For a random direction :math:`v` of signs, the gradient :math:`g` of :math:`\langle v,
N(x)\rangle` by a row of a layer's response has :math:`E \, g g^\top = J^\top J`, with
:math:`J` the derivative of the whole output by that row. One backward pass gives one
:math:`g` for each row of every layer, and there are many rows. It differentiates the
operations that run: derivatives that a function declares for itself do not count.

Knows the network; knows no solver.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from nettrim_jax._compile import compiled
from nettrim_jax.calibration.capture import by_lane
from nettrim_jax.calibration.padding import RowWeights
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import Literal
from nettrim_jax.tracing.sites import Network
from nettrim_jax.tracing.uses import Use
from nettrim_jax.typing import HIGHEST, Array, wide


@compiled(static_argnames=("network", "chosen"))
def sensitivities(
    network: Network,
    chosen: tuple[int, ...],
    consts: Sequence[Array],
    inputs: Sequence[Array],
    key: Array,
    weights: RowWeights | None = None,
) -> dict[int, Array]:
    r"""Sums of :math:`g g^\top` over all rows of the batch.

    Args:
      network: from :func:`nettrim_jax.tracing.sites.trace`.
      chosen: positions in ``network.sites``.
      consts: the constants that the network closes over.
      inputs: the params' arrays, then the batch's.
      key: a PRNG key.
      weights: as for :func:`nettrim_jax.calibration.capture.capture`.

    Returns:
      The sums by site, ``[b, d_out, d_out]``, for the result of the operation itself.
      Sites that feed no other site are left out, as are those whose rows are sorted by
      group. All are left out where the network has no reverse-mode derivative.
    """
    mine = [k for k in chosen if _feeds(network, k)]
    if not mine:
        return {}
    uses = {use.op.id: use for k in mine for use in network.sites[k].uses}
    gradients = _gradients(network, uses, consts, inputs, key, weights)
    if gradients is None:
        return {}
    return {k: _sum(network, k, gradients, weights) for k in mine}


def _feeds(network: Network, k: int) -> bool:
    """Whether this site feeds another one, and its rows are not sorted by group."""
    uses = network.sites[k].uses
    marks = functools.reduce(int.__or__, (use.mark for use in uses))
    ragged = any(use.folding.ragged for use in uses)
    others = (
        use for r, site in enumerate(network.sites) if r != k for use in site.uses
    )
    return not ragged and any(use.upstream & marks for use in others)


def _gradients(
    network: Network,
    uses: Mapping[int, Use],
    consts: Sequence[Array],
    inputs: Sequence[Array],
    key: Array,
    weights: RowWeights | None,
) -> dict[int, Array] | None:
    """The gradient at the result of each operation; None where JAX has none."""
    avals = network.flat.avals
    floating = [
        i
        for i, ref in enumerate(network.flat.block.outputs)
        if not isinstance(ref, Literal)
        and jnp.issubdtype(avals[ref].dtype, jnp.floating)
    ]

    def outputs_of(nudges: dict[int, Array]) -> list[Array]:
        outputs, _ = jaxprs.evaluate(network.flat, consts, inputs, nudges=nudges)
        return [outputs[i] for i in floating]

    def still(use: Use) -> Array:
        aval = avals[use.op.outputs[0]]
        return jnp.zeros((*use.loops, *aval.shape), aval.dtype)

    try:
        nudges = {id_: still(use) for id_, use in uses.items()}
        answers, pull = jax.vjp(outputs_of, nudges)

        def signs(i: int, a: Array) -> Array:
            own = jax.random.fold_in(key, i)
            drawn = jax.random.rademacher(own, a.shape, a.dtype)
            if weights is not None:  # nobody looks at the others
                drawn = weights.only(floating[i], drawn)
            return jnp.where(jnp.isinf(a), 0, drawn)  # what is infinite stays

        return pull([signs(i, a) for i, a in enumerate(answers)])[0]
    except (ValueError, NotImplementedError):  # of a while loop or a callback
        return None


def _sum(
    network: Network, k: int, gradients: Mapping[int, Array], weights: RowWeights | None
) -> Array:
    site, total = network.sites[k], []
    for turn, use in enumerate(site.uses):

        def of_rows(g: Array, *steps: Array, use: Use = use, turn: int = turn) -> Array:
            g = use.folding.result(g, jnp.arange(use.folding.rows))
            if weights is not None:
                counts = weights.rows(k, turn, steps) > 0
                g = jnp.where(counts[None, :, None], g, 0)
            return g if use.live is None else g[:, :, use.live[1]]

        every = functools.reduce(_each_step, reversed(use.loops), of_rows)
        g = by_lane(use, every(gradients[use.op.id]))
        g = g.astype(wide(g.dtype))
        total.append(jnp.einsum("bni,bnj->bij", g, g, precision=HIGHEST))
    return functools.reduce(jnp.add, total)


def _each_step(function: Callable[..., Array], length: int) -> Callable[..., Array]:
    """The function for all steps of the innermost loop, whose number it is given."""

    def all_steps(g: Array, *outer: Array) -> Array:
        return jax.vmap(lambda g, step: function(g, *outer, step))(
            g, jnp.arange(length)
        )

    return all_steps
