"""The best values on a given mask: the method, and the checks of the mask.

Knows the protocol of methods, trees of arrays and the network's sites; knows no batch.
"""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax import _sharding, results
from nettrim_jax._compile import compiled
from nettrim_jax._numerics import divide
from nettrim_jax._trees import is_array, known, path_of, require_alive
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.convex.programs import Program
from nettrim_jax.methods.base import (
    Answer,
    Cost,
    Lanes,
    LayerData,
    LayerKind,
    Method,
    by_layer,
    squared_errors,
)
from nettrim_jax.methods.layer_program import program_cost, programs_of, refit_lane
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.results import MethodError, ParamsError
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import Array, LeafPath, Params

BIASES = ("free", "fixed")
CALL = "refit(params, mask, apply_fn, batch)"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Refit:
    """Fits the weights of a layer that a mask keeps.

    Attributes:
      support: the weights that may be other than zero, ``[b, d_in, d_out]`` bool.
      bias: ``"free"``: the layer's own bias moves. ``"fixed"``: it stays.
    """

    support: Array
    bias: str = dataclasses.field(default="free", metadata={"static": True})

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """Asks for rows alone."""
        return ()

    @property
    def shared(self) -> None:
        """Asks nothing of the network as a whole."""

    def check(self) -> None:
        """Does nothing: the attributes are checked before."""

    def bind(self, kind: LayerKind, cascade: bool) -> "Refit":
        """The same method, since it fits every layer."""
        return self

    def prepare(self, data: LayerData, kind: LayerKind) -> "_Problem":
        """A program with a budget of zero, of which only the response is used."""
        return _prepare(self.support, data, self.bias, kind._replace(fed=False))

    def solve(self, problem: "_Problem", lanes: Lanes, start: None = None) -> Any:
        """Weights times the scale, and the change of the response by the biases."""
        return lanes.each(refit_lane, tuple(problem))

    def conclude(self, data: LayerData, solved: Any, kind: LayerKind) -> Answer:
        """The fitted values of the units whose error they do not increase."""
        return _conclude(data, self.support, solved, kind)

    def cost(self, problem: "_Problem") -> Cost:
        """The cost of one lane."""
        return program_cost(problem.program)


class _Problem(NamedTuple):
    program: Program  # with a leading lane axis
    start: Array  # [b, d_in, d_out], the trained weights on the support
    still: Array  # [b, d_out], zeros
    support: Array  # [b, d_in, d_out] bool


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Given:
    """A pattern that keeps what it is given, ``[b, d_in, d_out]`` bool."""

    kept: Array

    def keep(self, score: Array) -> Array:
        return self.kept


@compiled(static_argnames=("bias", "kind"))
def _prepare(support: Array, data: LayerData, bias: str, kind: LayerKind) -> _Problem:
    bias = bias if kind.biased else "fixed"
    # a fed layer's target is the trained response, not the limit of its cascade program
    method = NetTrim(epsilon=0.0, bias=bias)
    program, _ = programs_of(method, data.to_fit(kind.held), bias, kind)
    # weights as a program has them: times the scale
    start = jnp.where(support, data.W0 * data.seen.scale[:, None, :], 0)
    return _Problem(program, start, jnp.zeros_like(start[:, 0]), support)


@compiled(static_argnames="kind")
def _conclude(
    data: LayerData, support: Array, solved: tuple[Array, Array], kind: LayerKind
) -> Answer:
    """The fitted values of the units whose error, as stored, does not increase.

    Other units keep the trained values on the support. A layer of which all is kept
    stays as trained, and so does such a unit unless pruned layers feed it.
    """
    W, move = solved
    rows = data.to_fit(kind.held)
    old = entries.read(data.weights)
    before = jnp.where(support, old, 0)
    scale = rows.scale[:, None, :]
    # weights behind a scale of zero do not matter
    after = jnp.where(scale != 0, divide(W, scale).astype(old.dtype), before)
    bias = None if data.bias is None else entries.read(data.bias)
    if bias is not None:
        moved = bias.astype(move.dtype) + divide(move, rows.gain)
        moved = jnp.where(rows.gain != 0, moved.astype(bias.dtype), bias)
        move = (moved.astype(move.dtype) - bias.astype(move.dtype)) * rows.gain
    worst = jnp.sum(squared_errors(rows, before, None, kind.clip), axis=1)
    off = jnp.sum(squared_errors(rows, after, move, kind.clip), axis=1)
    good = jnp.isfinite(W).all((1, 2)) & jnp.isfinite(worst).all(1)
    good &= jnp.isfinite(jnp.where(rows.valid[:, :, None], rows.P, 0)).all((1, 2))
    whole = jnp.all(support, axis=(1, 2) if kind.fed else 1, keepdims=True)[:, 0]
    use = good[:, None] & (off <= worst) & ~whole & jnp.any(rows.valid, 1)[:, None]
    wide = rows.X.dtype
    before = before.astype(wide)
    new = jnp.where(use[:, None, :], after.astype(wide), before)
    result = jnp.where(good, results.DIRECT, results.NAN).astype(jnp.int32)
    if bias is not None:
        bias = jnp.where(use, moved, bias).astype(wide)
    pattern = _Given(by_layer(support, kind.layers))
    return Answer(new, bias, result, {}, fallback=before, pattern=pattern)


def check_bias(bias: Any) -> str:
    """The given value; raises MethodError if it is none of ``BIASES``."""
    if bias not in BIASES:
        raise MethodError(f"refit(bias={bias!r}): expected one of {BIASES}")
    return bias


def read(
    params: Params, mask: Params, name: str = "refit", call: str = CALL
) -> list[Array | np.ndarray]:
    """The mask of each array of the params, as bool; of NumPy if it is on one device.

    Raises:
      ParamsError: the mask's tree or a shape is not that of the params, or an array
        was deleted.
    """
    given, tree = jax.tree_util.tree_flatten_with_path(params)
    require_alive(name, mask, ParamsError)
    try:
        keeps = tree.flatten_up_to(mask)
    except ValueError as error:
        raise ParamsError(
            f"{name}: expected a mask of the params' tree; {error} The order is {call}"
        ) from None
    out = []
    for (path, leaf), keep in zip(given, keeps, strict=True):
        if not is_array(leaf):
            continue
        if getattr(keep, "shape", None) != leaf.shape:
            where = path_of(path)
            got = list(keep.shape) if hasattr(keep, "shape") else repr(keep)
            raise ParamsError(
                f"{name}: {where or 'the array'}: expected a mask of shape "
                f"{list(leaf.shape)}, got {got}; give a mask such as "
                "nettrim_jax.prune returns, True or a number other than zero where an "
                "entry is kept"
            )
        here = known(keep) and not _sharding.several(keep)
        keep = np.asarray(keep) if here else _sharding.plain(keep)
        out.append(keep.astype(bool))
    return out


def warn_if_pruned(leaves: list[Array], keeps: list[Array | np.ndarray]) -> None:
    """Warns if all that the mask removes is zero already, so nothing is left to fit."""
    if not all(known(a) for a in [*leaves, *keeps]):
        return
    both = zip(leaves, keeps, strict=True)
    # sums rather than entries: a leaf may lie on several devices
    removed = [((~keep).sum(), _held(leaf, keep)) for leaf, keep in both]
    if any(int(n) for n, _ in removed) and not any(int(n) for _, n in removed):
        warnings.warn(
            "refit: all that the mask removes is zero in params already, so they are "
            "their own best values; give the trained params, from before the pruning",
            stacklevel=4,
        )


def _held(leaf: Array, keep: Array | np.ndarray) -> Array | np.integer:
    """The number of entries other than zero that a mask removes."""
    if isinstance(keep, np.ndarray) and not _sharding.several(leaf):
        return np.sum((np.asarray(leaf) != 0) & ~keep)
    return jnp.sum((leaf != 0) & ~keep)


def by_site(
    network: Network,
    chosen: Iterable[int],
    skipped: Iterable[tuple[LeafPath, str]],
    keeps: list[Array | np.ndarray],
    bias: str,
) -> dict[int, Method]:
    """The method of each chosen site, with the site's entries of the mask.

    Args:
      network: the network's layers.
      chosen: positions in ``network.sites``.
      skipped: the leaves that are left alone, with reasons.
      keeps: a mask per leaf, see :func:`read`.
      bias: as in :class:`Refit`.

    Raises:
      ParamsError: the mask removes entries that no chosen site has.
    """
    inside = [np.zeros(keep.size, bool) for keep in keeps]
    out: dict[int, Method] = {}
    for k in chosen:
        site = network.sites[k]
        inside[site.leaf][site.index.ravel()] = True
        keep: Any = keeps[site.leaf]
        if isinstance(keep, np.ndarray):
            support: Any = keep.ravel()[site.index]
        else:
            support = entries.read(entries.of(keep, site.index))
        out[k] = Refit(support, bias)
    reasons = dict(skipped)
    for path, keep, mine in zip(network.paths, keeps, inside, strict=True):
        if not known(keep):
            continue  # a traced mask raises no error on values
        count = int((~keep & ~mine.reshape(keep.shape)).sum())
        if count:
            why = reasons.get(path, "they are no weights of a layer")
            raise ParamsError(
                f"refit: {path or 'the array'}: the mask removes {count} of its "
                f"{keep.size} entries that no layer fitted here has ({why}); expected "
                "a mask that keeps them; nettrim_jax.sites lists the layers"
            )
    return out


def hold(leaf: Array, keep: Array | np.ndarray) -> Array:
    """Applies a traced mask, for which no error can report entries of no layer."""
    if known(keep) or not jnp.issubdtype(leaf.dtype, jnp.number):
        return leaf
    return jnp.where(keep, leaf, jnp.zeros((), leaf.dtype))
