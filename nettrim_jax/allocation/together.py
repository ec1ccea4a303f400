"""The weights of all layers as one vector, which one method prunes.

Knows the second derivatives of a network and the orders; knows no particular method.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nettrim_jax.allocation.finished import Finished
from nettrim_jax.calibration import curvature
from nettrim_jax.calibration.batches import Part
from nettrim_jax.execution import layer, orders
from nettrim_jax.execution.options import Options
from nettrim_jax.methods.base import Joining
from nettrim_jax.methods.obs import Put
from nettrim_jax.results import MethodError
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.sites import Network


def follow(
    methods: Mapping[int, Joining], parts: Sequence[Part], options: Options
) -> Finished:
    """Prunes all layers at once.

    Args:
      methods: one for each site, which differ in their patterns at most.
      parts: all batches.
      options: how to prune.

    Raises:
      MethodError: the network has too many weights.
    """
    first = parts[0]
    network, old = first.network, first.model.leaves
    sites = {k: network.sites[k] for k in methods}
    one = next(iter(methods.values()))
    _require_few(one, sum(site.index.size for site in sites.values()))
    biases = _biases(network, methods)
    picks = [(site.leaf, site.index.ravel()) for site in sites.values()]
    picks += [(own.leaf, own.index.ravel()) for own in biases.values()]
    options.show(0, "second derivatives")
    H = sum(curvature.matrix(part, one.loss, picks) for part in parts)
    layers = [
        _layer(network, k, method, first, options) for k, method in methods.items()
    ]
    others = [np.asarray(old[own.leaf]).ravel()[own.index] for own in biases.values()]
    start = np.concatenate([np.zeros(0), *(a.ravel() for a in others)])
    options.show(0, "removals")
    found, moved = one.together(layers, start.astype(np.float64), np.asarray(H))
    steps, puts = moved - start, {}
    for (k, site), W in zip(sites.items(), found, strict=True):
        lanes, _, d_out = site.index.shape
        move = np.zeros((lanes, d_out))
        if k in biases:
            size = biases[k].index.size
            move, steps = steps[:size].reshape(move.shape), steps[size:]
        factor = 1.0 if site.factor is None else site.factor
        values: Any = (W * factor, move)
        puts[k] = Put(*values)
    # what is put is the answer, whatever was allowed
    came = orders.run(parts, puts, options._replace(revive=True, within=None))
    reports = {k: outcome.report for k, outcome in came.outcomes.items()}
    masks = {k: outcome.mask for k, outcome in came.outcomes.items()}
    return Finished(came.leaves, masks, reports, came.deviation, {})


def _require_few(method: Joining, count: int) -> None:
    shared = method.shared
    most = getattr(shared, "most", count)
    if count > most:
        raise MethodError(
            f"{type(method).__name__}: inverts a matrix of all weights at once, and "
            f"these are {count}; expected at most {most}. Give other layers None, or "
            "take OBD or SparseGPT"
        )


class _Bias(NamedTuple):
    leaf: int
    index: np.ndarray  # [b, d_out]


def _biases(network: Network, chosen: Mapping[int, Joining]) -> dict[int, _Bias]:
    """The biases that may move: those of which each entry is one unit's alone."""
    out: dict[int, _Bias] = {}
    seen: dict[int, np.ndarray] = {}
    for k in chosen:
        bias = network.sites[k].bias
        if bias is None:
            continue
        leaf, index = bias
        every = np.concatenate([seen.get(leaf, np.zeros(0, int)), index.ravel()])
        if len(np.unique(every)) == len(every):
            seen[leaf], out[k] = every, _Bias(leaf, index)
    return out


def _layer(
    network: Network, k: int, method: Joining, first: Part, options: Options
) -> Any:
    site, old = network.sites[k], first.model.leaves
    within = None
    if options.within is not None:
        within = entries.of(options.within[site.leaf], site.index)
    weights = entries.weights_of(site, old)
    allowed = layer.allowed(weights, within, site.layers, options.revive)
    W = np.asarray(old[site.leaf]).ravel()[site.index].astype(np.float64)
    every = np.ones(W.shape, bool) if allowed is None else np.asarray(allowed)
    return method.layer(W, site.layers, every)
