"""All rules, registered by the files of their families.

Knows which families there are; knows no program.
"""

from nettrim_jax.structure import (
    calls,
    contractions,
    convolutions,
    elementwise,
    indexing,
    loops,
    pieces,
    reductions,
    shapes,
    sources,
)
from nettrim_jax.structure.registry import RULES

FAMILIES = (
    calls,
    contractions,
    convolutions,
    elementwise,
    indexing,
    loops,
    pieces,
    reductions,
    shapes,
    sources,
)

__all__ = ["FAMILIES", "RULES"]
