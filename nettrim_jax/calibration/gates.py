"""Derivatives of the user's loss by a factor of each unit, sample by sample.

Knows the network's parts; knows no solver and no method.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._compile import compiled
from nettrim_jax._trees import is_array
from nettrim_jax.calibration.batches import Part
from nettrim_jax.calibration.gradient import Called, Loss
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array

ENTRIES = 2**25  # entries of leaves that one call may hold for all of its samples
SAMPLES = 32  # the most of one call


def slopes(
    loss: Loss, part: Part, gates: Mapping[int, np.ndarray], count: int
) -> np.ndarray:
    r"""The derivatives at one by factors :math:`\gamma_u` of some entries of leaves.

    Args:
      loss: ``loss(params, batch)``, one number.
      part: a batch; its samples are the entries along the first axis that all of its
        arrays share, or there is one.
      gates: by leaf, which factor each of its entries gets, in the leaf's shape; -1
        for none.
      count: the number of factors.

    Returns:
      ``[samples, count]``.

    Raises:
      MethodError: the loss is no number that JAX can differentiate.
    """
    leaves = part.model.leaves
    called = Called(loss, part.model.filler, jax.tree.structure(part.given))
    size = sum(leaves[k].size for k in gates)
    samples, rows = _samples(part.given)
    at_once = max(1, min(SAMPLES, ENTRIES // max(size, 1), samples))

    held = {k: jax.device_put(gate) for k, gate in gates.items()}
    out = []
    try:
        for start in range(0, samples, at_once):
            pick = np.minimum(np.arange(start, start + at_once), samples - 1)
            now = _some(called, held, leaves, rows(pick), count=count)
            out.append(np.asarray(now)[: samples - start])
    except Exception as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise MethodError(
            "loss: expected loss(params, batch) to give one floating number that "
            "jax.grad can differentiate by params, for a batch of one sample, too; it "
            f"failed: {type(error).__name__}: {first}"
        ) from error
    return np.concatenate(out)


@compiled(static_argnames=("loss", "count"))
def _some(
    loss: Called,
    gates: dict[int, Array],
    leaves: list[Array],
    batches: list[Any],
    count: int,
) -> Array:
    """The derivatives for some samples, ``[samples, count]``."""

    def one(batch: list[Any]) -> Array:
        def value(factors: Array) -> Any:
            every = jnp.append(factors, jnp.ones((), factors.dtype))
            new = list(leaves)
            for k, gate in gates.items():
                new[k] = new[k] * every[gate].astype(new[k].dtype)
            return loss(new, batch)

        return jax.grad(value)(jnp.ones(count, jnp.float32))

    return jax.vmap(one)(batches)


def _samples(batch: Any) -> tuple[int, Any]:
    """The number of samples, and a function that gives leaves of batches of one."""
    flat = jax.tree.leaves(batch)
    arrays = [is_array(a) and getattr(a, "ndim", 0) > 0 for a in flat]
    sizes: Sequence[int] = [
        a.shape[0] for a, own in zip(flat, arrays, strict=True) if own
    ]
    if len(set(sizes)) != 1:
        return 1, lambda pick: [jnp.asarray(a)[None] for a in flat]

    def rows(pick: np.ndarray) -> Any:
        return [
            jnp.asarray(a)[pick][:, None]
            if split
            else jnp.broadcast_to(a, (len(pick), *jnp.shape(a)))
            for a, split in zip(flat, arrays, strict=True)
        ]

    return sizes[0], rows
