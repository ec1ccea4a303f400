"""Penalties on the weights: the ``g`` of ``min g(W) + f(Z)``, known by its prox.

A penalty is a frozen record with pure methods. Users make it for ``W`` ``[d_in,
d_out]``; programs hold ``T``, the same penalty with one unit per row. The main methods
are ``value(W)``; ``prox(W, step)``, the minimiser of ``g(V) + sum (V - W)^2 / (2
step)`` for positive steps that broadcast to ``W``; and ``conjugate(A)``, which shrinks
the rows of ``A`` until ``g*`` is finite and returns the shrinkage, ``[d_out]``, and
``g*`` there, so that any dual gives a bound.

Knows penalties; knows no response, program or solver.
"""

from typing import Any

from nettrim_jax.convex.entrywise import (
    L1,
    Box,
    ElasticNet,
    FixedPattern,
    Nonnegative,
    Sign,
)
from nettrim_jax.convex.groups import GroupL1, SparseGroup

Entrywise = L1 | Box | ElasticNet | Nonnegative | Sign | FixedPattern
Groups = GroupL1 | SparseGroup
Penalty = Entrywise | Groups

METHODS = ("value", "prox", "conjugate", "slope", "box", "fits", "misfit", "scaled")
METHODS += ("reweighted",)


def is_penalty(value: Any) -> bool:
    """Whether a value has the methods that a program needs of a penalty."""
    kind = type(value)
    return hasattr(kind, "T") and all(callable(getattr(kind, m, None)) for m in METHODS)


__all__ = [
    "Box",
    "ElasticNet",
    "FixedPattern",
    "GroupL1",
    "L1",
    "Nonnegative",
    "Sign",
    "SparseGroup",
]
