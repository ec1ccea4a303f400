"""A mask that is given: checked, and read as what each layer may keep.

Knows trees of arrays and the graph's sites; knows no solver.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax.convex.programs import known
from nettrim_jax.results import MethodError, ParamsError
from nettrim_jax.tracing.sites import Graph, is_array
from nettrim_jax.typing import Array, Params, Path

BIASES = ("free", "fixed")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Refit:
    """The best values where a layer's weights may stay.

    Attributes:
      support: where they may, ``[b, d_in, d_out]`` bool.
      bias: ``"free"``: the layer's own bias moves. ``"fixed"``: it stays.
    """

    support: Array
    bias: str = dataclasses.field(default="free", metadata={"static": True})

    moments: ClassVar[bool] = False  # whether it needs those of all rows


def check_bias(bias: Any) -> None:
    """Raises MethodError if this is no way to treat a bias."""
    if bias not in BIASES:
        raise MethodError(f"refit(bias={bias!r}): expected one of {BIASES}")


def read(params: Params, mask: Params) -> list[Array | np.ndarray]:
    """The mask of every array of the params, as bool; NumPy's where it is known.

    Raises:
      ParamsError: the mask's tree or a shape is not that of the params.
    """
    given, tree = jax.tree_util.tree_flatten_with_path(params)
    try:
        keeps = tree.flatten_up_to(mask)
    except ValueError as error:
        raise ParamsError(
            f"refit: expected a mask of the params' tree; {error} The order is "
            "refit(params, mask, apply_fn, batch)"
        ) from None
    out = []
    for (path, leaf), keep in zip(given, keeps, strict=True):
        if not is_array(leaf):
            continue
        if getattr(keep, "shape", None) != leaf.shape:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            got = list(keep.shape) if hasattr(keep, "shape") else repr(keep)
            raise ParamsError(
                f"refit: {where or 'the array'}: expected a mask of shape "
                f"{list(leaf.shape)}, got {got}; give a mask such as "
                "nettrim_jax.prune returns, True or a number other than zero where an "
                "entry is kept"
            )
        out.append((np.asarray(keep) if known(keep) else keep).astype(bool))
    return out


def warn_if_pruned(leaves: list[Array], keeps: list[Array | np.ndarray]) -> None:
    """Warns if what the mask removes is zero already, so that nothing is to be done."""
    if not all(known(a) for a in [*leaves, *keeps]):
        return
    both = zip(leaves, keeps, strict=True)
    removed = [np.asarray(leaf)[~np.asarray(keep)] for leaf, keep in both]
    if any(a.size for a in removed) and not any(a.any() for a in removed):
        warnings.warn(
            "refit: all that the mask removes is zero in params already, so they are "
            "their own best values; give the trained params, from before the pruning",
            stacklevel=3,
        )


def by_site(
    graph: Graph,
    chosen: Iterable[int],
    skipped: Iterable[tuple[Path, str]],
    keeps: list[Array | np.ndarray],
    bias: str,
) -> Mapping[int, Refit]:
    """What each of the chosen sites may keep.

    Args:
      graph: the network's layers.
      chosen: positions in ``graph.sites``.
      skipped: all that is left alone, with reasons.
      keeps: a mask per leaf, see :func:`read`.
      bias: as in :class:`Refit`.

    Raises:
      ParamsError: the mask removes what no chosen site has.
    """
    inside = [np.zeros(keep.size, bool) for keep in keeps]
    out = {}
    for k in chosen:
        site = graph.sites[k]
        inside[site.leaf][site.index.ravel()] = True
        out[k] = Refit(jnp.asarray(keeps[site.leaf]).ravel()[site.index], bias)
    reasons = dict(skipped)
    for path, keep, mine in zip(graph.paths, keeps, inside, strict=True):
        if not isinstance(keep, np.ndarray):
            continue  # traced: nothing raises on values
        count = int(np.sum(~keep.ravel() & ~mine))
        if count:
            why = reasons.get(path, "they are no weights of a layer")
            raise ParamsError(
                f"refit: {path or 'the array'}: the mask removes {count} of its "
                f"{keep.size} entries that no layer fitted here has ({why}); expected "
                "a mask that keeps them; nettrim_jax.sites lists the layers"
            )
    return out


def hold(leaf: Array, keep: Array | np.ndarray) -> Array:
    """The leaf under a traced mask, which no error could refuse if it is no layer's."""
    if isinstance(keep, np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.number):
        return leaf
    return jnp.where(keep, leaf, jnp.zeros((), leaf.dtype))
