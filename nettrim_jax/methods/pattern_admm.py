"""The loop of ``Reconstruct``: ADMM between a pattern and a quadratic.

The step size grows until the choice of the pattern settles. The quadratic is that of
the Gram matrix, so the cost of a step does not depend on the number of rows. Where a
clip such as a ReLU follows, the linear term is updated every few steps for the present
response. There the quadratic touches the loss, and it stays above the loss where errors
of all units count alike.

Where the trials of ridges and plain parts have the shapes of the answer, they are
stages of one loop, since the compiler takes long for each copy of it.

Knows arrays and patterns; knows no method and no network.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._clip import Clip
from nettrim_jax._numerics import matmul, transposed_matmul
from nettrim_jax.methods.counts import roughly
from nettrim_jax.methods.patterns import NM, Pattern, Sparsity
from nettrim_jax.methods.quadratic import (
    Coupling,
    Observed,
    Quadratic,
    coupling_of,
    quadratic_of,
)
from nettrim_jax.methods.trials import ASIDE, Fit, Parts, default, is_open, search
from nettrim_jax.methods.within import Within, apart
from nettrim_jax.typing import HIGHEST, Array

# first and last step size, relative to a Gram matrix of unit diagonal plus ridge
FIRST, LAST = 0.03, 8.0
EVERY = 3  # steps between changes of the step size and of the linear term
WORK = 3 * 10**10  # largest number of terms in the products of all steps
FEWEST, MOST = 36, 150  # limits of the number of steps
TRIAL = 7  # changes of the step size that compare ridges and plain parts
NARROW = 128  # largest number of units of which all are compared
UNITS = 64  # number of units that stand for more


class Settings(NamedTuple):
    """Static settings of the loop, see :class:`nettrim_jax.Reconstruct`; hashable."""

    clip: Clip  # the limits between which the response passes
    free: bool  # whether the bias moves
    steps: int | None = None

    @property
    def clips(self) -> bool:
        """Whether some responses do not pass."""
        return not self.clip.linear


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def reconstruct(
    pattern: Pattern, seen: Observed, given: Parts, settings: Settings
) -> Fit:
    """One layer's weights and the change of its biases.

    The derivatives are those of the steps of the answer, for the parts that the trials
    choose.

    Args:
      pattern: the pattern of the weights.
      seen: the layer's lanes, which share the pattern's count.
      given: the terms against overfitting. Those that are ``OPEN`` are chosen: they are
        tried with few steps, on most of the rows and some of the units, and compared
        on the other rows.
      settings: the settings of the loop.

    Returns:
      The weights, the change of the biases, and the terms against overfitting.
    """
    if _narrow(pattern, seen):
        quadratic, found, parts = _together(pattern, seen, given, settings)
        return _final(pattern, seen, quadratic, found, parts)
    parts = chosen(pattern, seen, given, settings)
    return _answer(pattern, seen, parts, settings)


@reconstruct.defjvp
def _reconstruct_jvp(settings: Settings, primals: tuple, tangents: tuple) -> tuple:
    pattern, seen, given = primals
    parts = jax.lax.stop_gradient(chosen(pattern, seen, given, settings))

    def answer(seen: Observed, given: Parts) -> Fit:
        mine = jax.tree.map(lambda a, b: jnp.where(is_open(a), b, a), given, parts)
        return _answer(pattern, seen, mine, settings)

    # the choice of a pattern has no derivative
    return jax.jvp(answer, (seen, given), tangents[1:])


def _tries(seen: Observed) -> bool:
    """Whether there are enough rows to keep some aside."""
    return seen.X.shape[1] >= 2 * ASIDE


def _narrow(pattern: Pattern, seen: Observed) -> bool:
    """Whether trials have all units, and so the shapes of the answer."""
    return _tries(seen) and _some_units(pattern, seen)[1] is seen


def chosen(pattern: Pattern, seen: Observed, given: Parts, settings: Settings) -> Parts:
    """The given parts, and those that the trials choose."""
    if not _tries(seen):
        return default(given, settings.clips)
    pattern, some = _some_units(pattern, seen)
    fit, aside = _most_rows(some)
    quadratic = quadratic_of(fit, settings.free, settings.clips)
    blocks = min(TRIAL, _blocks(settings, seen))

    def stage(parts: Parts, _: Array) -> tuple[Array, None]:
        trial = _Stage(quadratic, None, parts, blocks)
        found = _loop(pattern, some, trial, settings)
        return _error(some, aside, quadratic, found, settings), None

    return search(given, settings.clips, stage, None)[0]


def _answer(pattern: Pattern, seen: Observed, parts: Parts, settings: Settings) -> Fit:
    quadratic = quadratic_of(
        seen, settings.free, settings.clips, parts.ridge + parts.plain
    )
    coupling = coupling_of(seen.coupling, quadratic.least)
    stage = _Stage(quadratic, coupling, parts, _blocks(settings, seen))
    found = _loop(pattern, seen, stage, settings)
    return _final(pattern, seen, quadratic, found, parts)


def _together(
    pattern: Pattern, seen: Observed, given: Parts, settings: Settings
) -> tuple[Quadratic, "_Found", Parts]:
    """The answer after all trials, by one loop."""
    fit, aside = _most_rows(seen)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), fit, seen)
    both = quadratic_of(both._replace(coupling=None), settings.free, settings.clips)
    coupling = coupling_of(seen.coupling, both.least)
    blocks = _blocks(settings, seen)
    b = len(seen.X)

    def stage(parts: Parts, last: Array) -> tuple[Array, _Found]:
        quadratic = jax.tree.map(lambda a: jnp.where(last, a[b:], a[:b]), both)
        mine = None if coupling is None else coupling.only_if(last)
        many = jnp.where(last, blocks, min(TRIAL, blocks))
        found = _loop(pattern, seen, _Stage(quadratic, mine, parts, many), settings)
        return _error(seen, aside, quadratic, found, settings), found

    still = jnp.zeros_like(seen.W0)
    nothing = _Found(still, still, still[:, 0])
    parts, found = search(given, settings.clips, stage, nothing, answer=True)
    return jax.tree.map(lambda a: a[b:], both), found, parts


def _most_rows(seen: Observed) -> tuple[Observed, Array]:
    """The lanes without one row in ``ASIDE``, and which rows these are, ``[b, n]``."""
    aside = seen.valid & (np.arange(seen.X.shape[1]) % ASIDE == ASIDE - 1)[None, :]
    out = aside[:, ASIDE - 1 :: ASIDE, None]  # all others stay
    rows = jnp.where(out, seen.X[:, ASIDE - 1 :: ASIDE], 0)
    rows = jnp.concatenate([rows, out.astype(seen.X.dtype)], axis=2)
    moments = seen.moments - matmul(rows.transpose(0, 2, 1), rows)
    return seen._replace(valid=seen.valid & ~aside, moments=moments), aside


def _error(
    seen: Observed,
    aside: Array,
    quadratic: Quadratic,
    found: "_Found",
    settings: Settings,
) -> Array:
    """The squared error on the rows that are kept aside."""
    W, b = _unscaled(seen, quadratic, found.Z, found.b)
    answer = seen.P0 + matmul(seen.X, W - seen.W0) + b[:, None, :]
    off = settings.clip(answer) - settings.clip(seen.P)
    return jnp.sum(jnp.where(aside[:, :, None], off**2, 0))


def _blocks(settings: Settings, seen: Observed) -> int:
    """The number of times that the step size changes.

    It is smaller where each step takes long, since the last ones gain least.
    """
    steps = settings.steps
    if steps is None:
        b, d_in, d_out = seen.W0.shape
        steps = int(np.clip(WORK // (b * d_in**2 * d_out), FEWEST, MOST))
    return -(-steps // EVERY)


class _Stage(NamedTuple):
    """What the loop solves: a trial, or the answer."""

    quadratic: Quadratic
    coupling: Coupling | None
    parts: Parts
    blocks: int | Array  # number of step sizes


class _State(NamedTuple):
    Z: Array  # [b, d_in, d_out], roughly within the pattern
    U: Array  # [b, d_in, d_out], scaled dual
    G: Array  # [b, d_in, d_out], the linear term
    b: Array  # [b, d_out]
    rho: Array  # []


class _Found(NamedTuple):
    """The end of the loop, for inputs divided by their size."""

    V: Array  # [b, d_in, d_out], whose largest entries are the weights
    Z: Array  # [b, d_in, d_out], roughly within the pattern
    b: Array  # [b, d_out]


def _loop(
    pattern: Pattern, seen: Observed, stage: _Stage, settings: Settings
) -> _Found:
    """Takes all steps."""
    quadratic, coupling, parts, blocks = stage
    X, size = quadratic.X, quadratic.size
    clip, ridge = settings.clip, parts.ridge
    plain = _plain(quadratic, parts)[:, None, None]
    B = seen.W0 * size[:, :, None]

    def weighed(G: Array) -> Array:
        return G if coupling is None else coupling.times(G)

    start = weighed(matmul(quadratic.A, B)) + ridge * B
    valid = quadratic.valid[:, :, None]
    on = clip.passes(seen.P)
    rows = jnp.maximum(jnp.sum(valid, axis=1), 1).astype(X.dtype)

    def aim(W: Array, b: Array) -> tuple[Array, Array]:
        """The linear term and the bias for the target at the present response."""
        want = seen.P
        if settings.clips:
            R = seen.P0 + matmul(X, W - B) + b[:, None, :]
            off = plain * seen.P + (1 - plain) * clip.like(R, seen.P)
            want = jnp.where(on, want, off)
        move = jnp.where(valid, want - seen.P0, 0)
        G = quadratic.share[:, None, None] * transposed_matmul(X, move)
        G = start + weighed(G)
        return G, jnp.sum(move, axis=1) / rows if settings.free else b

    # from low to high within FIRST and LAST in this number of changes
    growth = (LAST / FIRST) ** (1 / jnp.asarray(blocks, X.dtype))

    def block(_: Array, state: _State) -> _State:
        G, rho = state.G, state.rho
        solve = quadratic.solver(coupling, ridge + rho, B.shape[2])

        def step(_: Array, now: tuple[Array, ...]) -> tuple[Array, ...]:
            Z, U, _ = now
            W = solve(G + rho * (Z - U))
            V = W + U
            Z = jnp.where(roughly(pattern, V**2), V, 0)
            return Z, V - Z, W

        start = state.Z, state.U, state.Z
        Z, U, W = jax.lax.fori_loop(0, EVERY, step, start)
        G, b = aim(W, state.b) if settings.clips else (G, state.b)
        return _State(Z, U / growth, G, b, growth * rho)

    G, b = aim(B, jnp.zeros_like(B[:, 0]))
    state = _State(B, jnp.zeros_like(B), G, b, FIRST * (1 + ridge))
    state = jax.lax.fori_loop(0, blocks, block, state)
    return _Found(state.Z + growth * state.U, state.Z, state.b)


def _plain(quadratic: Quadratic, parts: Parts) -> Array:
    return jnp.maximum(parts.plain, quadratic.least)


def _final(
    pattern: Pattern,
    seen: Observed,
    quadratic: Quadratic,
    found: _Found,
    parts: Parts,
) -> Fit:
    """The weights exactly within the pattern, and the change of the biases."""
    keep = pattern.keep(found.V**2)
    W, b = _unscaled(seen, quadratic, jnp.where(keep, found.V, 0), found.b)
    # if all that may be left is kept and no earlier layer changed, every bit stays
    still = (seen.P == seen.P0) | ~seen.valid[:, :, None]
    _, allowed = apart(pattern)
    every = keep if allowed is None else keep == allowed
    whole = jnp.all(every) & jnp.all(still)
    W, b = jnp.where(whole, seen.W0, W), jnp.where(whole, 0, b)
    return Fit(W, b, parts._replace(plain=_plain(quadratic, parts)))


def _unscaled(
    seen: Observed, quadratic: Quadratic, Z: Array, b: Array
) -> tuple[Array, Array]:
    W = Z / quadratic.size[:, :, None]
    return W, b - jnp.einsum(
        "bi,bio->bo", quadratic.mean, W - seen.W0, precision=HIGHEST
    )


def _some_units(pattern: Any, seen: Observed) -> tuple[Any, Observed]:
    """Takes evenly spaced units, if the pattern is the same for any number of them."""
    d_out = seen.W0.shape[2]
    inner, allowed = apart(pattern)
    if d_out <= NARROW or not isinstance(inner, Sparsity | NM):
        return pattern, seen
    pick = np.arange(UNITS) * d_out // UNITS
    names = ("P", "P0", "W0")
    some = {name: getattr(seen, name)[:, :, pick] for name in names}
    if allowed is not None:
        pattern = Within(inner, allowed[:, :, pick])
    return pattern, seen._replace(coupling=None, **some)
