"""Figures of a record that may be unknown, and are no leaves of it then.

Knows records; knows no report.
"""

import dataclasses
from typing import Any, TypeVar

import numpy as np
from jax.tree_util import GetAttrKey, register_pytree_with_keys

Record = TypeVar("Record")

# the figure that stands for none, always this object
UNKNOWN: Any = np.float32(np.nan)


def register_figures(cls: type[Record]) -> type[Record]:
    """Registers a record as a pytree, in which unknown figures are no leaves.

    So no program computes a NaN that stands for nothing, and ``jax_debug_nans`` sees
    only those that went wrong.
    """
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    arrays = tuple(f.name for f in fields if not f.metadata.get("static"))

    def flatten(one: Record) -> tuple[Any, Any]:
        names = tuple(name for name in arrays if getattr(one, name) is not UNKNOWN)
        rest = tuple(getattr(one, name) for name in static)
        return [(GetAttrKey(name), getattr(one, name)) for name in names], (names, rest)

    def unflatten(form: Any, values: Any) -> Record:
        names, rest = form
        given = dict.fromkeys(arrays, UNKNOWN) | dict(zip(names, values, strict=True))
        return cls(**given, **dict(zip(static, rest, strict=True)))

    register_pytree_with_keys(cls, flatten, unflatten)
    return cls
