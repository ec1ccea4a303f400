"""Exact budgets without a network: what one layer saw, and what is made of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._clip import NO_CLIP, RELU
from nettrim_jax.methods import pattern_admm
from nettrim_jax.methods.pattern_admm import Settings
from nettrim_jax.methods.quadratic import Observed
from nettrim_jax.methods.trials import OPEN, Parts


def seen(X, W, t=0.0):
    """What a layer of these weights saw, all rows kept, nothing pruned before it."""
    ones = np.concatenate([X, np.ones_like(X[:, :, :1])], axis=2)
    moments = np.einsum("bni,bnj->bij", ones, ones)
    P = np.einsum("bni,bio->bno", X, W) + t
    valid = np.ones(X.shape[:2], bool)
    return Observed(*map(jnp.asarray, (X, P, P, valid, moments, W)))


def settings(method, seen, relu, free):
    """What of a ``Reconstruct`` its loop is told: the parts to choose, and the rest."""
    given = (OPEN if a is None else a for a in (method.ridge, method.plain))
    parts = Parts(*(jnp.asarray(a, seen.X.dtype) for a in given))
    clip = RELU if relu else NO_CLIP
    return parts, Settings(clip, free, method.steps)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def reconstruct(method, seen, relu, free):
    """Weights by a ``Reconstruct``, and how far biases move."""
    told = settings(method, seen, relu, free)
    fit = pattern_admm.reconstruct(method.pattern, seen, *told)
    return fit[:2]


def choose(method, seen, relu, free):
    """The ridge and the plain part that a ``Reconstruct`` comes to."""
    told = settings(method, seen, relu, free)
    return pattern_admm.chosen(method.pattern, seen, *told)
