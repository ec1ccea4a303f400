"""The loop of ``Reconstruct``: ADMM between a pattern and a quadratic.

The step size grows until the choice of the pattern settles. The quadratic is that of
the Gram matrix, so the cost of a step does not depend on the number of rows. Where a
ReLU follows, the linear term is updated every few steps for the present response. There
the quadratic touches the loss, and it stays above the loss where errors of all units
count alike.

Knows arrays and patterns; knows no method and no network.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._numerics import after, matmul
from nettrim_jax.methods.patterns import NM, Pattern, Sparsity
from nettrim_jax.methods.quadratic import Observed, Quadratic, quadratic_of
from nettrim_jax.typing import HIGHEST, Array

# first and last step size, relative to a Gram matrix of unit diagonal plus ridge
FIRST, LAST = 0.03, 8.0
EVERY = 3  # steps between changes of the step size and of the linear term
RIDGES = (1e-3, 1e-2, 0.1, 0.3, 1.0)
PLAINS = (0.0, 0.3, 1.0)
WORK = 3 * 10**10  # largest number of terms in the products of all steps
FEWEST, MOST = 36, 150  # limits of the number of steps
TRIAL = 21  # steps that compare ridges and plain parts
UNITS = 64  # largest number of units on which they are compared
ASIDE = 4  # one row in ``ASIDE`` is kept aside for that
CLOSE = 0.005  # relative difference up to which the larger value is preferred


class Settings(NamedTuple):
    """Static settings of the loop, see :class:`nettrim_jax.Reconstruct`; hashable."""

    relu: bool  # whether a ReLU follows
    free: bool  # whether the bias moves
    ridge: float | None = None
    plain: float | None = None
    steps: int | None = None


def reconstruct(
    pattern: Pattern, seen: Observed, settings: Settings
) -> tuple[Array, Array]:
    """One layer's weights and the change of its biases.

    Args:
      pattern: the pattern of the weights.
      seen: the layer's lanes, which share the pattern's count.
      settings: the settings of the loop.

    Returns:
      ``W`` ``[b, d_in, d_out]`` and the change of the biases ``[b, d_out]``.
    """
    parts = choose(pattern, seen, settings)
    quadratic = quadratic_of(seen, settings.free, parts.ridge + parts.plain)
    settings = settings._replace(steps=_steps(settings, seen))
    W, b = _loop(pattern, quadratic, seen, parts, settings)
    # if all weights are kept and no earlier layer changed, every bit stays
    still = (seen.P == seen.P0) | ~seen.valid[:, :, None]
    whole = jnp.all(pattern.keep(after(jnp.ones_like(W), W))) & jnp.all(still)
    return jnp.where(whole, seen.W0, W), jnp.where(whole, 0, b)


def _steps(settings: Settings, seen: Observed) -> int:
    """The number of steps, smaller where each takes long: the last ones gain least."""
    if settings.steps is not None:
        return settings.steps
    b, d_in, d_out = seen.W0.shape
    return int(np.clip(WORK // (b * d_in**2 * d_out), FEWEST, MOST))


class Parts(NamedTuple):
    """The terms that keep a layer from overfitting its rows."""

    ridge: Array  # []
    plain: Array  # []


def choose(pattern: Pattern, seen: Observed, settings: Settings) -> Parts:
    """The ridge and the plain part of a layer.

    Values that are not given are tried with few steps, on most of the rows and some of
    the units, and compared on the other rows.
    """
    n, dtype, relu = seen.X.shape[1], seen.X.dtype, settings.relu
    ridges = RIDGES if settings.ridge is None else (float(settings.ridge),)
    plains = PLAINS if settings.plain is None else (float(settings.plain),)
    plains = plains if relu else (1.0,)
    ridge, plain = (jnp.asarray(a[len(a) // 2], dtype) for a in (ridges, plains))
    if len(ridges) == len(plains) == 1 or n < 2 * ASIDE:
        return Parts(ridge, plain)
    settings = settings._replace(steps=min(TRIAL, _steps(settings, seen)))
    seen = _some_units(pattern, seen._replace(coupling=None))
    aside = np.arange(n) % ASIDE == ASIDE - 1
    rows = jnp.where(seen.valid[:, aside, None], seen.X[:, aside], 0)
    rows = jnp.concatenate([rows, seen.valid[:, aside, None].astype(dtype)], axis=2)
    fit = _rows(seen, ~aside)._replace(
        moments=seen.moments - matmul(rows.transpose(0, 2, 1), rows)
    )
    out = _rows(seen, aside)
    run = functools.partial(_loop, pattern, quadratic_of(fit, settings.free), fit)

    def error(ridge: Array, plain: Array) -> Array:
        W, b = run(Parts(ridge, plain), settings)
        answer = out.P0 + matmul(out.X, W - out.W0) + b[:, None, :]
        want = out.P
        if relu:
            answer, want = jnp.maximum(answer, 0), jnp.maximum(want, 0)
        return jnp.sum(jnp.where(out.valid[:, :, None], (answer - want) ** 2, 0))

    def best(tried: Array, off: Array) -> Array:
        """The last of the values that are about as good as the best."""
        off = jnp.where(jnp.isfinite(off), off, jnp.inf)
        good = off <= (1 + CLOSE) ** 2 * jnp.min(off)
        return tried[len(tried) - 1 - jnp.argmax(good[::-1])]

    if len(ridges) > 1:  # a larger value overfits less
        tried = jnp.asarray(ridges, dtype)
        ridge = best(tried, jax.vmap(error, (0, None))(tried, plain))
    if len(plains) > 1:
        tried = jnp.asarray(plains, dtype)
        plain = best(tried, jax.vmap(error, (None, 0))(ridge, tried))
    return Parts(ridge, plain)


class _State(NamedTuple):
    Z: Array  # [b, d_in, d_out], within the pattern
    U: Array  # [b, d_in, d_out], scaled dual
    G: Array  # [b, d_in, d_out], the linear term
    b: Array  # [b, d_out]
    rho: Array  # []


def _loop(
    pattern: Pattern,
    quadratic: Quadratic,
    seen: Observed,
    parts: Parts,
    settings: Settings,
) -> tuple[Array, Array]:
    """The weights within the pattern and the change of the biases, after all steps."""
    X, size, coupling = quadratic.X, quadratic.size, quadratic.coupling
    relu, free, steps = settings.relu, settings.free, settings.steps
    assert steps is not None
    ridge = parts.ridge
    plain = jnp.maximum(parts.plain, quadratic.least)[:, None, None]
    B = seen.W0 * size[:, :, None]

    def weighed(G: Array) -> Array:
        return G if coupling is None else matmul(G, coupling.M)

    start = weighed(matmul(quadratic.A, B)) + ridge * B
    valid = seen.valid[:, :, None]
    on = seen.P > 0 if relu else jnp.ones_like(seen.P, bool)
    rows = jnp.maximum(jnp.sum(valid, axis=1), 1).astype(X.dtype)

    def aim(W: Array, b: Array) -> tuple[Array, Array]:
        """The linear term and the bias for the target at the present response."""
        want = seen.P
        if relu:
            R = seen.P0 + matmul(X, W - B) + b[:, None, :]
            off = plain * seen.P + (1 - plain) * jnp.minimum(R, 0)
            want = jnp.where(on, want, off)
        move = jnp.where(valid, want - seen.P0, 0)
        G = quadratic.share[:, None, None] * matmul(X.transpose(0, 2, 1), move)
        G = start + weighed(G)
        return G, jnp.sum(move, axis=1) / rows if free else b

    e, Q = quadratic.e, quadratic.Q

    def solve(right: Array, rho: Array) -> Array:
        right = matmul(Q.transpose(0, 2, 1), right)
        if coupling is None:
            return matmul(Q, right / (e + ridge + rho)[:, :, None])
        curve = e[:, :, None] * coupling.e[:, None, :] + ridge + rho
        turned = matmul(right, coupling.Q) / curve
        return matmul(matmul(Q, turned), coupling.Q.transpose(0, 2, 1))

    growth = (LAST / FIRST) ** (EVERY / max(steps, EVERY))

    def step(i: Array, state: _State) -> _State:
        Z, U, G, b, rho = state
        W = solve(G + rho * (Z - U), rho)
        V = W + U
        Z = jnp.where(pattern.keep(V**2), V, 0)
        state = _State(Z, V - Z, G, b, rho)

        def next_size() -> _State:
            G, b = aim(W, state.b) if relu else (state.G, state.b)
            return _State(Z, state.U / growth, G, b, growth * rho)

        return jax.lax.cond((i + 1) % EVERY == 0, next_size, lambda: state)

    G, b = aim(B, jnp.zeros_like(B[:, 0]))
    state = _State(B, jnp.zeros_like(B), G, b, FIRST * (1 + ridge))
    state = jax.lax.fori_loop(0, steps, step, state)
    W = state.Z / size[:, :, None]
    return W, state.b - jnp.einsum(
        "bi,bio->bo", quadratic.mean, W - seen.W0, precision=HIGHEST
    )


def _rows(seen: Observed, pick: np.ndarray) -> Observed:
    names = ("X", "P", "P0", "valid")
    return seen._replace(**{name: getattr(seen, name)[:, pick] for name in names})


def _some_units(pattern: Pattern, seen: Observed) -> Observed:
    """Takes evenly spaced units, if the pattern is the same for any number of them."""
    d_out = seen.W0.shape[2]
    if d_out <= UNITS or not isinstance(pattern, Sparsity | NM):
        return seen
    pick = np.arange(UNITS) * d_out // UNITS
    names = ("P", "P0", "W0")
    return seen._replace(**{name: getattr(seen, name)[:, :, pick] for name in names})
