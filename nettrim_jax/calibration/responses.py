"""What follows each layer of a network, in one run.

Knows the network; knows no solver and no rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nettrim_jax.calibration.minibatches import Piece
from nettrim_jax.calibration.model import Model
from nettrim_jax.calibration.padding import RowWeights, require_followed, row_weights
from nettrim_jax.tracing import epilogue, jaxprs
from nettrim_jax.tracing.jaxprs import Op, Ref
from nettrim_jax.tracing.sites import Network, require_sites, trace
from nettrim_jax.tracing.uses import Use
from nettrim_jax.typing import Array, Batch, LeafPath

# the outputs, and for each site the values of each of its uses
Responses = tuple[list[Array], list[list[Array]]]


def layer_leaves(model: Model, batch: Batch) -> tuple[set[int], tuple[LeafPath, ...]]:
    """The positions of the matrices of all layers and of their own biases.

    Args:
      model: the network.
      batch: a batch; only shapes and dtypes matter.

    Returns:
      The positions among the arrays of the params, and the paths of all of these.

    Raises:
      LayersError: there is no layer.
    """
    network = trace(model.apply_fn, model.params, batch)
    require_sites(network)
    biases = {site.bias[0] for site in network.sites if site.bias is not None}
    return {site.leaf for site in network.sites} | biases, network.paths


def counted(
    model: Model, outputs: Sequence[list[Array]], piece: Piece
) -> Sequence[list[Array]]:
    """Outputs of the network, with zeros where no weight is above zero.

    Args:
      model: the network; of a smaller one that with all of its units.
      outputs: its outputs, with some params each.
      piece: the batch, with its weights.

    Raises:
      BatchError: the weights do not fit the batch.
    """
    if piece.weights is None:
        return outputs
    network = trace(model.apply_fn, model.params, piece.batch)
    weights = row_weights(network, piece.weights)
    return outputs if weights is None else [weights.counted(one) for one in outputs]


def responses(
    model: Model, params: Sequence[Sequence[Array]], piece: Piece
) -> list[Responses]:
    """The outputs, and what follows all layers: behind a clip such as a ReLU.

    Derivatives that a function of the network declares for itself do not count.

    Args:
      model: the network.
      params: the arrays of several params, of the same shapes.
      piece: a batch, with its weights.

    Returns:
      For each of the params the outputs, and for each site the values of each of its
      uses, as the network has them; within a ``scan`` with one more leading axis per
      loop. With weights they are rows ``[b, n, d_out]``, zero where they do not count.

    Raises:
      BatchError: the weights do not fit the batch, or cannot be followed to a layer.
    """
    network = trace(model.apply_fn, model.filler(params[0]), piece.batch)
    weights = row_weights(network, piece.weights)
    for k in range(len(network.sites)):
        require_followed(network, weights, k)
    given = [jnp.asarray(leaf) for leaf in jax.tree.leaves(piece.batch)]
    return [_run(network, [*leaves, *given], weights) for leaves in params]


def _run(
    network: Network, inputs: Sequence[Array], weights: RowWeights | None
) -> Responses:
    by_visit: dict[int, list[tuple[int, int, Use]]] = {}
    for k, site in enumerate(network.sites):
        for turn, use in enumerate(site.uses):
            by_visit.setdefault(use.visit, []).append((k, turn, use))

    def visit(op: Op, read: Callable[[Ref], Array], steps: tuple[Array, ...]) -> Any:
        def of(k: int, turn: int, use: Use) -> Array:
            value = network.sites[k].clip(read(use.chain.end))
            if weights is None:
                return value
            Z = read(use.chain.start)
            value = epilogue.pull_back(use.chain.ops, Z, value)
            value = use.folding.result(value, jnp.arange(use.folding.rows))
            counts = weights.rows(k, turn, steps) > 0
            return jnp.where(counts[None, :, None], value, 0)

        return {use.op.id: of(k, turn, use) for k, turn, use in by_visit[op.id]}

    outputs, seen = jaxprs.evaluate(
        network.flat, network.consts, inputs, by_visit, visit
    )
    by_op = {key: value for values in seen.values() for key, value in values.items()}
    outputs = outputs if weights is None else weights.counted(outputs)
    return outputs, [[by_op[u.op.id] for u in site.uses] for site in network.sites]
