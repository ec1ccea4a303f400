"""The records that a solve returns: solution, statistics, certificate and history.

Under ``jax.vmap`` every array has a leading lane axis; shapes are those of one lane.
Knows arrays; knows no program.
"""

from typing import NamedTuple

from nettrim_jax.typing import Array


class Stats(NamedTuple):
    """The steps, the objective and the step size of a solve."""

    steps: Array  # [], int32
    objective: Array  # [], g(W)
    rho: Array  # [], the last step size


class Certificate(NamedTuple):
    """The proof of a solution's quality."""

    gap: Array  # [], max(|objective - lower_bound|, ||L|| distance) / objective
    lower_bound: Array  # [], no feasible weights have a smaller penalty
    violation: Array  # [], distance of the response to its set / ||Y_Omega||_F


class Solution(NamedTuple):
    """Weights, code, statistics and certificate, with a lane axis under ``vmap``."""

    W: Array  # [d_in, d_out], exact zeros
    bias: Array  # [d_out], to be added to t; zeros if the bias is fixed
    result: Array  # [], int32, see nettrim_jax.results
    stats: Stats
    certificate: Certificate
    dual: Array | None  # [n, d_out], multiplier of the response at the last step


class History(NamedTuple):
    """The objective and the certificate at every check; NaN after the last one."""

    steps: Array  # [k], int32
    objective: Array  # [k], g(W)
    lower_bound: Array  # [k]
    gap: Array  # [k], as in Certificate
    violation: Array  # [k], as in Certificate
