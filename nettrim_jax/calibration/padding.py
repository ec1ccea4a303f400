"""The weights of rows: which of a layer's rows count, wherever the axes went.

Knows labels of axes; knows no program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax.results import BatchError
from nettrim_jax.tracing.axes import Axes, axes_of
from nettrim_jax.tracing.labels import Factor, Labels, is_lost, marks_of, without_marks
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import Array

SiteAxes = tuple[tuple[Axes, ...], ...]  # per site and use
OutputAxes = tuple[Labels | None, ...]  # per output; None where they are lost


@register_dataclass
@dataclasses.dataclass(frozen=True)
class RowWeights:
    """The weights of the samples, or of their positions.

    Attributes:
      values: one number per sample, or per sample and position.
      axes: per site and use, which axes of the values its rows are along.
      outputs: per output of the network, which axes of the values its own are along.
    """

    values: Array
    axes: SiteAxes = dataclasses.field(metadata={"static": True})
    outputs: OutputAxes = dataclasses.field(metadata={"static": True})

    def of_sites(self, chosen: tuple[int, ...]) -> "RowWeights":
        """The same weights for some of the sites, in this order."""
        axes = tuple(self.axes[k] for k in chosen)
        # layers that are alike share programs, whatever the outputs are
        return dataclasses.replace(self, axes=axes, outputs=())

    def rows(self, site: int, turn: int, steps: tuple[Any, ...]) -> Array:
        """The weights of the rows of one use, ``[n]``, at these steps of its loops.

        A row that is of no single position has the largest weight of all of them.
        """
        return self._along(self.axes[site][turn], steps)

    def counted(self, outputs: Sequence[Array]) -> list[Array]:
        """The outputs of the network, with zeros where no weight is above zero.

        An output whose axes are lost counts as a whole.
        """
        return [self.only(k, out) for k, out in enumerate(outputs)]

    def only(self, k: int, values: Array) -> Array:
        """Values like an output, with zeros where no weight is above zero."""
        labels = self.outputs[k]
        if labels is None:
            return values
        counts = self._along(Axes(labels, ()), ()).reshape(values.shape) > 0
        return jnp.where(counts, values, jnp.zeros((), values.dtype))

    def _along(self, axes: Axes, steps: tuple[Any, ...]) -> Array:
        values = self.values
        factors = [f for label in axes.rows for f in without_marks(label)]
        shape = [factor.size for factor in factors]
        along: dict[int | str, tuple[Factor, Any]] = {}  # with which of its entries
        for mark in (f for label in axes.rows for f in marks_of(label) if f.step):
            along[mark.axis] = mark, 0
        for at, factor in enumerate(factors):
            after = (1,) * (len(factors) - at - 1)
            along[factor.axis] = factor, np.arange(factor.size).reshape(-1, *after)
        for label, step in zip(axes.steps, steps, strict=True):
            # the last part is the fastest
            for factor in reversed(without_marks(label)):
                along[factor.axis] = factor, step % factor.size
                step = step // factor.size
        index: list[Any] = []
        for axis, last in enumerate(self.values.shape):
            factor, entry = along.get(axis, (Factor(axis, 1, last), 0))
            ends = factor.start, factor.start + factor.step * (factor.size - 1)
            place = factor.start + factor.step * entry
            if min(ends) < 0 or max(ends) >= last:  # after the last one, the largest
                most = jnp.max(values, axis=axis, keepdims=True)
                values = jnp.concatenate([values, most], axis=axis)
                place = jnp.where((place >= 0) & (place < last), place, last)
            index.append(place)
        return jnp.broadcast_to(values[tuple(index)], shape).ravel()


def row_weights(
    network: Network,
    values: Array | None,
    axes: Callable[[Network, tuple[int, ...]], tuple[SiteAxes, OutputAxes]]
    | None = None,
) -> RowWeights | None:
    """The weights with the axes of all sites.

    Args:
      network: the network.
      values: the weights; None for none.
      axes: :func:`all_axes`, or what remembers its answers.

    Raises:
      BatchError: they do not fit the batch.
    """
    if values is None or not network.sites:
        return None
    return RowWeights(values, *(axes or all_axes)(network, values.shape))


def all_axes(network: Network, shape: tuple[int, ...]) -> tuple[SiteAxes, OutputAxes]:
    """The axes of every use of every site and of the outputs, for weights of a shape.

    Raises:
      BatchError: they do not fit the batch.
    """
    uses = [use for site in network.sites for use in site.uses]
    found = axes_of(network.flat, len(network.paths), uses, shape)
    used: set[int | str] = set()
    for axes in (found.uses if found else {}).values():
        used |= {f.axis for label in (*axes.rows, *axes.steps) for f in label}
    lost = any(isinstance(axis, str) for axis in used)
    needed = {axis for axis, size in enumerate(shape) if size > 1}
    if found is None or (needed - used and not lost):
        rows = list(uses[0].folding.row_shape)
        raise BatchError(
            f"weights: shape {list(shape)} is no prefix of the rows {rows} of "
            f"a {uses[0].folding.kind} layer; give one number per sample, or per "
            "sample and position"
        )
    sites = (tuple(found.uses[use.op.id] for use in s.uses) for s in network.sites)
    outputs = (
        None if any(map(is_lost, labels)) else labels for labels in found.outputs
    )
    return tuple(sites), tuple(outputs)


def require_followed(network: Network, weights: RowWeights | None, k: int) -> None:
    """Raises BatchError if the rows of a site cannot be told from padding."""
    if weights is None:
        return
    site = network.sites[k]
    for use, axes in zip(site.uses, weights.axes[k], strict=True):
        if use.folding.ragged:
            raise BatchError(
                "weights: the rows of a ragged_dot are sorted by group "
                f"({site.path}), so it cannot be told which of them the weights mean; "
                "leave padding out of the batch, or the experts by exclude="
            )
        for label in (*axes.rows, *axes.steps):
            for factor in label:
                if isinstance(factor.axis, str):
                    raise BatchError(
                        f"weights: which rows of {site.path} they mean cannot be "
                        f"followed: {factor.axis}. Leave padding out of the batch, or "
                        "the layer by exclude="
                    )
