"""The values of reports as plain data, and back.

Knows numbers and texts; knows no report.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nettrim_jax import results
from nettrim_jax._trees import known
from nettrim_jax.report.figures import UNKNOWN
from nettrim_jax.typing import LeafPath


@contextlib.contextmanager
def reading(kind: str, data: Any) -> Iterator[None]:
    """Turns whatever data of another kind raise into one error."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise results.NetTrimError(
            f"{kind}.from_dict: expected what {kind}.to_dict() gave, got "
            f"{type(data).__name__} ({type(error).__name__}: {error})"
        ) from None


def require_known(report: Any) -> None:
    """Raises NetTrimError if a value of a report is being traced."""
    if not all(map(known, jax.tree.leaves(report))):
        raise results.NetTrimError(
            "report.to_dict(): its values are being traced; return the report "
            "from the function that JAX traces, and call it outside"
        )


def array(value: Any) -> Any:
    """Numbers that may be missing, as an array."""
    if value is None:
        return UNKNOWN
    whole = np.array(value, object)
    if all(isinstance(a, int) for a in whole.ravel()):
        return np.asarray(value, np.int32)
    return np.asarray(value, float)


def pairs(skipped: Sequence[Mapping[str, str]]) -> tuple[tuple[LeafPath, str], ...]:
    """Leaves that were left alone, with their reasons, from plain data."""
    return tuple((one["path"], one["reason"]) for one in skipped)


def plain(value: Any) -> Any:
    """A number, a list of numbers, a text or None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return list(value)
    array = np.asarray(value)
    flat = [_number(x) for x in array.ravel().tolist()]
    return flat[0] if array.ndim == 0 else flat


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None


def left(skipped: Sequence[tuple[LeafPath, str]]) -> list[dict[str, str]]:
    """Leaves that were left alone, with their reasons."""
    return [{"path": path, "reason": reason} for path, reason in skipped]
