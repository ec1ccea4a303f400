"""What a solve gives back: the answer, a code, what it took and what it proves.

Knows arrays only.
"""

from typing import NamedTuple

from nettrim_jax.typing import Array


class Stats(NamedTuple):
    """What a reader wants to know of a solve; arrays without lanes."""

    steps: Array  # [], int32
    objective: Array  # [], g(W)
    rho: Array  # [], the last step size


class Certificate(NamedTuple):
    """Proof of the answer's quality, in the units said; arrays without lanes."""

    gap: Array  # [], max(|objective - lower_bound|, ||L|| distance) / objective
    lower_bound: Array  # [], no feasible weights have a smaller penalty
    violation: Array  # [], distance of the response to its set / ||Y_Omega||_F


class Solution(NamedTuple):
    """Answer, code, stats and certificate; each with a lane axis under ``vmap``."""

    W: Array  # [d_in, d_out], exact zeros
    bias: Array  # [d_out], what to add to t; zeros if the bias is fixed
    result: Array  # [], int32, see nettrim_jax.results
    stats: Stats
    certificate: Certificate
    dual: Array | None  # [n, d_out], multiplier of the response at the last step


class History(NamedTuple):
    """What the solver saw at each look, with NaN after the last one."""

    steps: Array  # [k], int32
    objective: Array  # [k], g(W)
    lower_bound: Array  # [k]
    gap: Array  # [k], as in Certificate
    violation: Array  # [k], as in Certificate
