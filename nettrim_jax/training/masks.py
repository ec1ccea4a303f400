"""The masks of all layers of a network, chosen together by their schedules.

Layers of one shape are stacked, so that a step has one choice per shape, and all of
them are behind one condition per schedule. Knows schedules; knows no optimiser.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import _sharding
from nettrim_jax._trees import from_host, is_array, known, on_host
from nettrim_jax.results import MethodError
from nettrim_jax.training.leaves import Flat, Place, assigned, hidden, places
from nettrim_jax.training.schedule import Seen, is_schedule
from nettrim_jax.typing import Array, wide

CALLER = "train_sparse"


class Group(NamedTuple):
    """Layers of one shape under one schedule, or all of a schedule as one layer."""

    schedule: Any
    members: tuple[Place, ...]
    dtype: Any  # in which weights are compared

    def gather(self, leaves: Sequence[Any], dtype: Any, *, plain: bool = True) -> Any:
        """The members' entries of leaves, ``[l, b, d_in, d_out]``."""
        parts = [
            place.matrices.read(leaves[place.leaf], plain=plain).astype(dtype)
            for place in self.members
        ]
        xp: Any = np if isinstance(parts[0], np.ndarray) else jnp
        if not self.schedule.shared:
            return parts[0] if len(parts) == 1 else xp.concatenate(parts)
        return xp.concatenate([a.ravel() for a in parts]).reshape(1, 1, -1, 1)

    def scatter(self, values: Any, leaves: list[Any]) -> None:
        """Puts entries into the leaves of a list."""
        values, at = values.reshape(-1), 0
        for place in self.members:
            size = int(np.prod(place.matrices.shape))
            part = values[at : at + size].reshape(place.matrices.shape)
            leaves[place.leaf] = place.matrices.write(
                leaves[place.leaf], part, plain=True
            )
            at += size


class Step(NamedTuple):
    """What a step of the optimiser gives; lists have an entry per leaf."""

    number: Array  # of the step, from one
    weights: list[Any]  # after the step
    before: list[Any]
    gradients: list[Any]
    masks: list[Any]
    movement: list[Any]
    key: Array  # its data


def table(schedule: Any) -> None:
    """Raises MethodError unless it is a schedule, or a mapping to some."""
    several = isinstance(schedule, Mapping)
    for one in schedule.values() if several else (schedule,):
        if not (is_schedule(one) or (one is None and several)):
            raise MethodError(
                f"{CALLER}: expected a schedule, such as "
                "nettrim_jax.Gradual(nettrim_jax.Sparsity(0.9), end=1000), or a dict "
                f"from regular expressions to schedules or None, got {one!r}"
            )


class Plan:
    """The groups of some params.

    Args:
      flat: the params.
      schedule: a schedule, or a mapping from regular expressions to schedules.
      layers: what :func:`nettrim_jax.sites` found, or None.

    Raises:
      MethodError: a pattern does not fit a layer, or no layer has a schedule.
    """

    def __init__(self, flat: Flat, schedule: Any, layers: Any):
        spots = places(flat, layers, CALLER)
        given = assigned(schedule, flat, spots, CALLER)
        self.schedules: list[Any] = []
        found: dict[Any, list[Place]] = {}
        for place, one in zip(spots, given, strict=True):
            if one is None:
                continue
            try:
                one.check(place.matrices.shape[1:])
            except MethodError as error:
                raise MethodError(f"{place.matrices.path}: {error}") from None
            if one not in self.schedules:
                self.schedules.append(one)
            kind = self.schedules.index(one), wide(flat.leaves[place.leaf].dtype)
            shape = None if one.shared else place.matrices.shape[1:]
            found.setdefault((*kind, shape), []).append(place)
        if not found and not any(map(hidden, flat.leaves)):
            raise MethodError(
                f"{CALLER}: no layer has a schedule; the leaves of two or more "
                "dimensions that it found are "
                f"{', '.join(place.matrices.path for place in spots) or 'none'}"
            )
        self.groups = [
            Group(self.schedules[at], tuple(members), dtype)
            for (at, dtype, _), members in found.items()
        ]
        self.taken = {place.leaf for group in self.groups for place in group.members}
        self.revived = self._leaves("revives")
        self.moved = self._leaves("moves")
        self._chosen, self._later = jax.jit(self._choose), jax.jit(self._first)

    def only(self, entries: Sequence[Any]) -> list[Any]:
        """The entries of leaves that have a schedule; None for the others."""
        return [a if at in self.taken else None for at, a in enumerate(entries)]

    def _leaves(self, name: str) -> set[int]:
        """The leaves whose schedules have a property."""
        asked = (group for group in self.groups if getattr(group.schedule, name))
        return {place.leaf for group in asked for place in group.members}

    def first(self, leaves: Sequence[Any]) -> list[Any]:
        """The mask of each leaf before the first step; None for what is no array."""
        given = self.only(leaves)
        if all(map(on_host, jax.tree.leaves(given))):
            masks = self._first(jax.tree.map(np.asarray, given))
            put = from_host
        else:
            masks = _sharding.automatic(self._later, _sharding.plain(given), given)
            put = _sharding.like
        for at, leaf in enumerate(leaves):
            if at in self.taken:
                masks[at] = put(masks[at], leaf)
            elif is_array(leaf):
                masks[at] = _on(leaf)
        return masks

    def _first(self, leaves: list[Any]) -> list[Any]:
        host = isinstance(next(iter(jax.tree.leaves(leaves)), None), np.ndarray)
        xp: Any = np if host else jnp
        masks = [None if a is None else xp.ones(a.shape, bool) for a in leaves]
        for group in self.groups:
            mask = group.schedule.first(group.gather(leaves, group.dtype, plain=False))
            if mask is not None:
                group.scatter(mask, masks)
        return masks

    def choose(self, step: Step) -> tuple[list[Any], dict[int, Any]]:
        """The mask of each leaf after a step, and values of weights that come on."""
        like = step.masks, {at: step.weights[at] for at in self.revived}
        return _sharding.automatic(self._chosen, step, like)

    def _choose(self, step: Step) -> tuple[list[Any], dict[int, Any]]:
        masks, starts = list(step.masks), {}
        for schedule in self.schedules:
            its = [(k, g) for k, g in enumerate(self.groups) if g.schedule is schedule]
            leaves = sorted({place.leaf for _, group in its for place in group.members})

            def same(
                leaves: list[int] = leaves, revives: bool = schedule.revives
            ) -> tuple[list[Any], list[Any]]:
                zeros = [jnp.zeros_like(step.weights[at]) for at in leaves]
                return [step.masks[at] for at in leaves], zeros if revives else []

            def anew(its: Any = its, leaves: list[int] = leaves) -> Any:
                return _anew(its, leaves, step)

            new, begin = jax.lax.cond(schedule.due(step.number), anew, same)
            for at, mask in zip(leaves, new, strict=True):
                masks[at] = mask
            starts |= dict(zip(leaves, begin, strict=False))
        return masks, starts


def _anew(
    its: Sequence[tuple[int, Group]], leaves: Sequence[int], step: Step
) -> tuple[list[Any], list[Any]]:
    """The masks of some leaves as their schedule chooses them, and the new values."""
    masks = list(step.masks)
    starts = [None if w is None else jnp.zeros_like(w) for w in step.weights]
    pairs = zip(step.before, step.gradients, strict=True)
    effects = [None if g is None else w.astype(g.dtype) * g for w, g in pairs]
    key = jax.random.fold_in(jax.random.wrap_key_data(step.key), step.number)
    revives = False
    for number, group in its:
        schedule = group.schedule
        seen = Seen(
            group.gather(step.weights, group.dtype, plain=False),
            group.gather(step.masks, bool),
            group.gather(step.gradients, group.dtype),
            group.gather(effects, group.dtype),
            group.gather(step.movement, group.dtype) if schedule.moves else None,
            jax.random.fold_in(key, number),
        )
        chosen = schedule.choose(step.number, seen)
        group.scatter(chosen.mask, masks)
        revives = schedule.revives
        if revives:
            group.scatter(chosen.start, starts)
    return [masks[at] for at in leaves], [
        starts[at] for at in leaves
    ] if revives else []


def _on(leaf: Any) -> Any:
    """A mask of ones, where a leaf lies."""
    if known(leaf) and on_host(leaf):
        return from_host(np.ones(leaf.shape, bool), leaf)
    return jnp.ones_like(leaf, dtype=bool)
