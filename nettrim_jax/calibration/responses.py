"""What follows each layer of a network, in one run.

Knows the network; knows no solver and no rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nettrim_jax.calibration.model import Model
from nettrim_jax.tracing import jaxprs
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


def responses(
    model: Model, params: Sequence[Sequence[Array]], batch: Batch
) -> list[Responses]:
    """The outputs, and what follows all layers: behind a clip such as a ReLU.

    Derivatives that a function of the network declares for itself do not count.

    Args:
      model: the network.
      params: the arrays of several params, of the same shapes.
      batch: a batch.

    Returns:
      For each of the params the outputs, and for each site the values of each of its
      uses, as the network has them; within a ``scan`` with one more leading axis per
      loop.
    """
    network = trace(model.apply_fn, model.filler(params[0]), batch)
    given = [jnp.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    return [_run(network, [*leaves, *given]) for leaves in params]


def _run(network: Network, inputs: Sequence[Array]) -> Responses:
    by_visit: dict[int, list[tuple[int, Use]]] = {}
    for k, site in enumerate(network.sites):
        for use in site.uses:
            by_visit.setdefault(use.visit, []).append((k, use))

    def visit(op: Op, read: Callable[[Ref], Array], _: tuple[Array, ...]) -> Any:
        return {
            use.op.id: network.sites[k].clip(read(use.chain.end))
            for k, use in by_visit[op.id]
        }

    outputs, seen = jaxprs.evaluate(
        network.flat, network.consts, inputs, by_visit, visit
    )
    by_op = {key: value for values in seen.values() for key, value in values.items()}
    return outputs, [[by_op[u.op.id] for u in site.uses] for site in network.sites]
