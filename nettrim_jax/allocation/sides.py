"""Which rows and columns of layers' matrices are the units of a group.

Knows groups and sites; knows no method.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nettrim_jax.structure.records import Entry, Group
from nettrim_jax.tracing.sites import Site


class Side(NamedTuple):
    """A site beside a group's units.

    Attributes:
      site: its position.
      makes: whether its responses are the units, or its inputs.
      unit: the unit of each response or input, ``[b, d]``; -1 for none.
      step: the step of each lane, ``[b]``.
    """

    site: int
    makes: bool
    unit: np.ndarray
    step: np.ndarray


def steps_of(group: Group) -> int:
    """The number of choices of a group."""
    return math.prod(group.steps)


def sides_of(
    group: Group, sites: Sequence[Site], shape: Callable[[int], tuple[int, ...]]
) -> list[Side]:
    """The sites that make, or sum over, a group's units.

    Args:
      group: the group.
      sites: all sites.
      shape: the shape of a leaf.
    """
    out = []
    for entry in group.entries:
        for k, site in enumerate(sites):
            if site.leaf == entry.leaf:
                side = _side(group, entry, k, site, shape(site.leaf))
                out += [] if side is None else [side]
    return out


def _side(
    group: Group, entry: Entry, k: int, site: Site, shape: tuple[int, ...]
) -> Side | None:
    """The site with an entry; None if its lanes are the units, as of depthwise ones."""
    marked = _marked(group, entry, shape).ravel()[site.index]
    if not (marked >= 0).any():
        return None
    first = marked.max((1, 2))
    step = np.where(first >= 0, first // group.count, -1)
    unit = np.where(marked >= 0, marked % group.count, -1)
    per_input = (unit == unit[:, :, :1]).all()
    per_response = (unit == unit[:, :1, :]).all()
    if per_input and per_response:  # one input or response, or lanes
        if site.index.shape[1] == site.index.shape[2] == 1:
            return None
        reads = site.index.shape[2] == 1 and site.path in group.consumers
        makes = site.index.shape[1] == 1 and site.path in group.producers
        if reads == makes or (unit[:, :1, :1] == unit).all():
            return None
        per_response = makes
    elif not (per_input or per_response):
        return None
    return Side(
        k, bool(per_response), unit[:, 0] if per_response else unit[:, :, 0], step
    )


def _marked(group: Group, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    """The unit and step of each entry of a leaf, as one number; -1 for none."""
    along = [1] * len(shape)
    along[entry.axis] = shape[entry.axis]
    units = entry.units.reshape(along)
    steps = [1] * len(shape)
    steps[: len(group.steps)] = group.steps
    step = np.arange(steps_of(group)).reshape(steps)
    every = np.where(units >= 0, units + group.count * step, -1)
    return np.broadcast_to(every, shape)
