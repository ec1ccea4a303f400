"""The policy of one agent: what it tries, what that is worth, and what it learns.

A policy turns the weights of units into probabilities that they stay. At every step
some choices are drawn from it, and it moves up the gradient of the expected reward.

Knows arrays; knows no network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax._numerics import matmul
from nettrim_jax.typing import Array, ArrayLike

STAY = 1.0  # logarithm of the odds that a unit stays, at first
DECAYS = 0.9, 0.98  # of the means of the gradient and of its square


class Policy(NamedTuple):
    """Two layers, from a unit's weights to the logarithm of the odds that it stays."""

    hidden: Array  # [d, width]
    hidden_bias: Array  # [width]
    output: Array  # [width]
    output_bias: Array  # [s, k], of each unit its own


class Tried(NamedTuple):
    """Choices that were measured: the units that stay, and the fall of the metric."""

    keep: Array  # [m, s, k] bool, or [s, k] of one
    fall: Array  # [m], or []


class Slopes(NamedTuple):
    """What Adam remembers of the gradients so far."""

    mean: Policy
    square: Policy
    count: Array  # []


class Learner(NamedTuple):
    """An agent as it stands."""

    policy: Policy
    slopes: Slopes
    best: Tried  # with the fewest units within the bound
    few: Array  # [], the largest number of likeliest units that is known to be too few
    key: Array


def start(filters: Array, key: Array, width: int) -> Learner:
    """An agent that has tried nothing.

    Args:
      filters: the weights of each unit, ``[s, k, d]``; ``s`` steps of a loop remove
        units of their own, as many as each other.
      key: of its draws.
      width: of the hidden layer.
    """
    s, k, d = filters.shape
    key, inner, outer = jax.random.split(key, 3)
    policy = Policy(
        hidden=jax.random.normal(inner, (d, width), jnp.float32) / d**0.5,
        hidden_bias=jnp.zeros(width, jnp.float32),
        output=jax.random.normal(outer, (width,), jnp.float32) / (10 * width**0.5),
        output_bias=jnp.full((s, k), STAY, jnp.float32),
    )
    nothing = Tried(jnp.ones((s, k), bool), jnp.zeros((), jnp.float32))
    zeros = jax.tree.map(jnp.zeros_like, policy)
    slopes = Slopes(zeros, zeros, jnp.zeros((), jnp.float32))
    return Learner(policy, slopes, nothing, jnp.zeros((), jnp.int32), key)


def odds(policy: Policy, filters: Array) -> Array:
    """The logarithms of the odds that units stay, ``[s, k]``."""
    inner = matmul(filters, policy.hidden) + policy.hidden_bias[None, None]
    return matmul(jax.nn.relu(inner), policy.output[:, None])[..., 0] + (
        policy.output_bias
    )


def highest(scores: Array, counts: Array) -> Array:
    """So many units with the highest scores, at every step of a loop.

    Args:
      scores: ``[m, s, k]``.
      counts: ``[m]``.

    Returns:
      Which they are, ``[m, s, k]`` bool.
    """
    ranks = jnp.argsort(jnp.argsort(-scores, axis=-1), axis=-1)
    return ranks.astype(jnp.int32) < counts[:, None, None]


def choices(actions: Array, scores: Array) -> Array:
    """Actions as choices that a network can have: one unit stays, at all steps as many.

    Args:
      actions: ``[m, s, k]`` bool.
      scores: ``[s, k]``, by which units come or go where numbers differ.
    """
    mean = jnp.mean(jnp.sum(actions, -1, dtype=jnp.float32), -1)
    counts = jnp.maximum(jnp.round(mean), 1).astype(jnp.int32)
    acted = 2 * actions.astype(jnp.float32)
    return highest(acted + jax.nn.sigmoid(scores)[None], counts)


def propose(
    learner: Learner, filters: Array, last: Array, samples: int
) -> tuple[Learner, Array, Array]:
    """What to try next: draws from the policy, and the choice that it makes likeliest.

    Args:
      learner: the agent.
      filters: ``[s, k, d]``.
      last: whether to try the units that are likeliest to stay, between the most that
        are too few and the fewest that are enough so far.
      samples: ``m``.

    Returns:
      The agent, the actions that were drawn, ``[m, s, k]``, and the choices to measure,
      ``[m + 1, s, k]``.
    """
    key, now = jax.random.split(learner.key)
    scores = odds(learner.policy, filters)
    p = jax.nn.sigmoid(scores)
    actions = jax.random.bernoulli(now, p[None], (samples, *p.shape))
    drawn = choices(jnp.concatenate([actions, (scores > 0)[None]]), scores)
    enough = jnp.sum(learner.best.keep[0], dtype=jnp.int32)
    between = (enough - learner.few) * jnp.arange(1, samples + 2, dtype=jnp.int32)
    counts = jnp.maximum(learner.few + between // (samples + 2), 1)
    each = jnp.broadcast_to(scores, drawn.shape)
    keep = jnp.where(last, highest(each, counts), drawn)
    return learner._replace(key=key), actions, keep


def rewards(tried: Tried, room: ArrayLike) -> Array:
    """The products of accuracy term and efficiency term, ``[m]``.

    A metric that is no number counts as the worst of these, and at least as a fall of
    twice the room.
    """
    known = jnp.isfinite(tried.fall)
    worst = jnp.max(jnp.where(known, tried.fall, 2 * room))
    fall = jnp.where(known, tried.fall, worst)
    kept = jnp.mean(tried.keep, (1, 2), dtype=jnp.float32)
    return -jnp.minimum((room - fall) / room, 1) * jnp.log(kept)


def policy_gradient(
    policy: Policy, filters: Array, actions: Array, rewards: Array
) -> Policy:
    """An estimate of the gradient of the expected reward, without bias.

    The baseline of each sample is the mean reward of the others.
    """
    m = len(rewards)
    advantages = (rewards - jnp.mean(rewards)) * (m / (m - 1))

    def surrogate(policy: Policy) -> Array:
        scores = odds(policy, filters)[None]
        log = jax.nn.log_sigmoid(jnp.where(actions, scores, -scores))
        return jnp.mean(advantages * jnp.sum(log, (1, 2)))

    return jax.grad(surrogate)(policy)


def climb(
    policy: Policy, slopes: Slopes, slope: Policy, rate: ArrayLike
) -> tuple[Policy, Slopes]:
    """A step of Adam up the gradient; that of optax is none under strict promotion."""
    first, second = DECAYS
    count = slopes.count + 1
    mean = jax.tree.map(lambda a, g: first * a + (1 - first) * g, slopes.mean, slope)
    square = jax.tree.map(
        lambda a, g: second * a + (1 - second) * g**2, slopes.square, slope
    )

    def moved(a: Array, m: Array, v: Array) -> Array:
        size = jnp.sqrt(v / (1 - second**count)) + 1e-8
        return a + rate * m / (1 - first**count) / size

    return jax.tree.map(moved, policy, mean, square), Slopes(mean, square, count)


class Measured(NamedTuple):
    """What one step tried: the actions that were drawn, and all choices."""

    actions: Array  # [m, s, k] bool
    tried: Tried  # m + 1 of them
    last: Array  # [] bool, as for ``propose``


def learn(
    learner: Learner, filters: Array, seen: Measured, room: Array, rate: Array
) -> Learner:
    """The agent after a step."""
    m, tried = len(seen.actions), seen.tried
    got = rewards(Tried(tried.keep[:m], tried.fall[:m]), room)
    # rewards are of any size at first, and the optimiser would remember it for long
    got = got / (jnp.std(got) + 1e-6)
    slope = policy_gradient(learner.policy, filters, seen.actions, got)
    policy, slopes = climb(learner.policy, learner.slopes, slope, rate)
    best = better(learner.best, tried, room)
    counts = jnp.sum(tried.keep[:, 0], -1, dtype=jnp.int32)
    bad = ~(tried.fall <= room) & (counts < jnp.sum(best.keep[0], dtype=jnp.int32))
    few = jnp.max(jnp.where(bad, counts, 0))
    new = learner._replace(policy=policy, slopes=slopes, best=best)
    old = learner._replace(best=best, few=few)
    return jax.tree.map(lambda a, b: jnp.where(seen.last, a, b), old, new)


def better(best: Tried, tried: Tried, room: ArrayLike) -> Tried:
    """Of one choice and those that are within, that with the fewest units.

    Of as many units, that with the least fall.
    """
    keep = jnp.concatenate([best.keep[None], tried.keep])
    fall = jnp.concatenate([best.fall[None], tried.fall])
    counts = jnp.sum(keep, (1, 2), dtype=jnp.float32)
    inside = (fall <= room).at[0].set(True)  # one that is no number is not within
    least = jnp.min(jnp.where(inside, counts, jnp.inf))
    at = jnp.argmin(jnp.where(inside & (counts == least), fall, jnp.inf))
    return Tried(keep[at], fall[at])
