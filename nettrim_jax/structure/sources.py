"""Rules of operations that make values of nothing: counters and random bits.

They are made at their full size, and what is kept is taken of them.

Knows these operations; knows no program.
"""

from typing import Any

from nettrim_jax.structure import values
from nettrim_jax.structure.ids import VARIES
from nettrim_jax.structure.registry import (
    Follower,
    all_stay,
    axes_of,
    full_then_taken,
    rule,
)
from nettrim_jax.structure.values import ANY, CONSTANT, Value


def _made(walk: Follower, shape: tuple[Any, ...], along: int = -1) -> Value:
    axes = []
    for at, size in enumerate(shape):
        level = values.levels(CONSTANT if at == along else ANY)
        axes.append(walk.fresh(size, level))
        if axes[-1].ids is not None:
            walk.ids.mark(axes[-1].ids, VARIES)
    return Value(tuple(axes), values.levels(ANY))


@rule("iota", full_then_taken)
def _iota(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes that nothing else has."""
    shape = eqn.outvars[0].aval.shape
    return [_made(walk, shape, eqn.params["dimension"])]


@rule("random_bits rng_uniform rng_bit_generator", full_then_taken)
def _random(walk: Follower, eqn: Any, inputs: list[Value]) -> list[Value]:
    """Axes that nothing else has; those of keys have to stay."""
    why = f"`{eqn.primitive.name}` draws with it"
    all_stay(walk, axes_of(inputs), why)
    return [_made(walk, var.aval.shape) for var in eqn.outvars]
