"""The jaxpr of ``apply_fn``, and what is said if it cannot be called so.

Knows trees and JAX; knows no layer.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nettrim_jax._trees import Filler, is_array, path_of
from nettrim_jax.results import ApplyFnError, BatchError, ParamsError
from nettrim_jax.tracing import untyped
from nettrim_jax.typing import ApplyFn, Batch, Params

ORDER = "the order is prune(params, apply_fn, batch)"


def jaxpr_of(apply_fn: ApplyFn, params: Params, batch: Batch) -> tuple[Any, list[Any]]:
    """The closed jaxpr of the arrays of the params and the batch, and these arrays.

    Raises:
      ApplyFnError: ``apply_fn`` is not callable or fails on these arguments.
      BatchError: a leaf of the batch holds no numbers.
      ParamsError: there is no floating leaf.
    """
    fill = Filler(params)
    arrays = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in arrays):
        kinds = sorted({str(leaf.dtype) for leaf in arrays}) or "no array at all"
        raise ParamsError(
            f"params: expected a pytree with floating arrays, got {kinds}; "
            "pass the trained parameters, the first argument of apply_fn"
            + (f"; {ORDER}" if callable(params) else "")
        )

    def call(arrays: list[Any], batch: Batch) -> Any:
        answer = apply_fn(fill(arrays), batch)
        # outputs other than arrays, such as names and flags, do not matter
        return [leaf for leaf in jax.tree.leaves(answer) if is_array(leaf)]

    return _make_jaxpr(call, arrays, batch, apply_fn), arrays


def _make_jaxpr(call: Any, arrays: list[Any], batch: Batch, apply_fn: Any) -> Any:
    if not callable(apply_fn):
        raise ApplyFnError(
            "apply_fn: expected a function apply_fn(params, batch), got "
            f"{type(apply_fn).__name__}; {ORDER}"
        )
    _require_numbers(batch)
    try:
        return untyped.make_jaxpr(call, arrays, batch)
    except Exception as error:
        shapes = jax.tree.map(lambda a: getattr(a, "shape", type(a).__name__), batch)
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise ApplyFnError(
            f"apply_fn(params, batch) failed on a batch of shapes {shapes}: "
            f"{type(error).__name__}: {first}. It is called with exactly these two "
            "arguments and must be traceable by jax.jit; wrap it, for example "
            "lambda params, x: model.apply(params, x, train=False), or call "
            f"model.eval() before nnx.split{_hint(batch)}"
        ) from error


def _require_numbers(batch: Batch) -> None:
    """Raises BatchError with the path of the first leaf that holds no numbers."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        # dates, objects, bytes, and text, of NumPy or alone
        other = getattr(getattr(leaf, "dtype", None), "kind", "") in "MOSUm"
        # a string in place of the batch is another mistake
        if (isinstance(leaf, str | bytes) and keys) or (other and is_array(leaf)):
            what = str(getattr(leaf, "dtype", type(leaf).__name__))
            raise BatchError(
                f"batch: {path_of(keys) or 'the batch'} is of type {what}; expected "
                "numbers. Leave out of the batch what apply_fn does not compute with"
            )


def _hint(batch: Batch) -> str:
    """A hint on a possible mistake if the batch has several components."""
    if not isinstance(batch, tuple | list):
        return ""
    return (
        f". The batch is a {type(batch).__name__} of {len(batch)}: where a part is "
        "labels give the inputs alone or wrap apply_fn, lambda params, batch: "
        "apply_fn(params, batch[0]); several batches are given as iter(batches)"
    )
