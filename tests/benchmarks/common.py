"""What the benchmarks of whole networks share."""

import pathlib
import sys

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def magnitude(params, mask):
    """The largest weights of each pruned leaf, as many as the mask keeps."""

    def cut(leaf, kept):
        zeros = leaf.size - int(kept.sum())
        if leaf.ndim < 2 or not zeros:
            return leaf
        least = jnp.sort(jnp.abs(leaf).ravel())[zeros : zeros + 1]
        return jnp.where(jnp.abs(leaf) >= least, leaf, 0) if len(least) else 0 * leaf

    return jax.tree.map(cut, params, mask)
