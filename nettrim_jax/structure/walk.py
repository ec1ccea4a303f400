"""Walks through a jaxpr and finds which indices of which axes go together.

Every index of every axis of every value gets an id. Each operation has a rule that
says which ids it unites and which have to stay; what has no rule keeps all of its
axes, with its name as the reason.

Knows operations through their rules; knows no groups of units.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from nettrim_jax._trees import known
from nettrim_jax.structure import values
from nettrim_jax.structure.ids import VARIES, Ids
from nettrim_jax.structure.registry import RULES, Product, all_stay, axes_of
from nettrim_jax.structure.values import ANY, BAD, CONSTANT, ONE, ZERO, Axis, Value
from nettrim_jax.tracing import jaxprs

INPUT = "it is an axis of the network's input"
CALLS = jaxprs.CALLS  # what runs in the place of these is looked into
OUTPUT = "it is an axis of the network's output"


@dataclasses.dataclass(eq=False)
class Scope:
    """What is known within one run of a jaxpr.

    Attributes:
      closed: the jaxpr.
      values: what is known of each variable.
      inner: the scopes of the bodies that an operation runs, by its position.
      loop: the number of the loop that it is a body of.
      plain: whether it runs once, whatever the data are.
    """

    closed: Any
    values: dict[Any, Value]
    inner: dict[int, list["Scope"]]
    loop: int
    plain: bool = True

    def every(self) -> "list[Scope]":
        """This run, and all runs of bodies within it."""
        inner = [body for bodies in self.inner.values() for body in bodies]
        return [self, *(scope for body in inner for scope in body.every())]

    def value(self, atom: Any) -> Value:
        """What is known of an operand."""
        if not isinstance(atom, jex_core.Literal):
            return self.values[atom]
        number = values.number_of(np.asarray(atom.val))
        level = CONSTANT if number is None else ZERO if number == 0 else CONSTANT
        return Value((), values.levels(level), number=number)


@dataclasses.dataclass(eq=False)
class Seen:
    """A linear operation and where it stands.

    Attributes:
      product: what its rule has noted.
      scope, at: the run of a jaxpr, and the operation's position in it.
      bias: the leaf that is added to its result, and the ids of its axes.
      along: the axes of the result that the bias has.
    """

    product: Product
    scope: Scope
    at: int
    bias: tuple[int, list[np.ndarray]] | None = None
    along: tuple[int, ...] = ()


class Walk:
    """Follows all axes through a program.

    Args:
      strict: whether a sum must miss nothing when indices are removed from it; not so
        where that was found before.
      looping: whether the program may have loops.

    Attributes:
      ids: the ids of all axes.
      seen: the linear operations.
      parts: ids of parts that are cut out of axes.
      summed: ids that a product sums over.
      missed: ids at which a sum misses something in the params as given.
      reads: for each leaf, how many operations compute with it.
      responses: for each linear operation, how many compute with its result.
      steps: for each leaf and axis that a loop goes through, the loop.
      loops: for each loop, the one around it and its length.
    """

    def __init__(self, strict: bool = True, looping: bool = True):
        self.ids = Ids()
        self.looping = looping
        self.strict = strict
        self.quiet = False  # within rules of derivatives
        self.seen: list[Seen] = []
        self.parts: list[np.ndarray] = []
        self.summed: list[np.ndarray] = []
        self.missed: list[np.ndarray] = []
        self.reads: Counter[int] = Counter()
        self.responses: Counter[int] = Counter()
        self.steps: dict[tuple[int, int], int] = {}
        self.loops: list[tuple[int, Any]] = [(-1, 1)]
        self.constants: list[Value] = []
        self.leaves = 0
        self._scope: Scope | None = None
        self._at = 0

    # ---- what the rules ask for

    def unite(self, axes: Sequence[Axis]) -> Axis:
        """One axis for several that are indexed alike; its levels are the first's."""
        free = [axis for axis in axes if axis.ids is not None]
        stays = next((axis for axis in axes if axis.ids is None), None)
        if stays is not None:
            for axis in free:
                self.ids.keep(axis.ids, stays.why)
            return stays
        for axis in free[1:]:
            self.ids.unite(free[0].ids, axis.ids)
        return free[0]

    def stay(self, axis: Axis, why: str) -> Axis:
        """An axis all of whose indices have to stay."""
        if axis.ids is None:
            return axis
        self.ids.keep(axis.ids, why)
        return Axis(None, why)

    def fresh(self, size: Any, level: np.ndarray) -> Axis:
        """An axis that nothing else has, with ``level`` at every index."""
        if not isinstance(size, int | np.integer):
            return Axis(None, "its size is symbolic")
        if size == 1:
            return ONE
        spread = np.repeat(level[:, None], size, 1)
        return Axis(self.ids.fresh(int(size)), "", spread)

    def part(self, axis: Axis) -> Axis:
        """Notes that an axis is a part cut out of another one."""
        if axis.ids is not None and not self.quiet:
            self.parts.append(axis.ids)
        return axis

    def contract(self, eqn: Any, act: Axis, weight: Axis) -> np.ndarray | None:
        """Sums over an axis of two operands.

        Returns:
          At which indices the sum misses nothing in the params as given, ``[n]``; None
          if all of them have to stay.
        """
        axis = self.unite([act, weight])
        if axis.ids is None:
            return None
        good = (act.levels == ZERO) | (weight.levels == ZERO)
        good &= (act.levels != BAD) & (weight.levels != BAD)
        if self.strict and not good[0].all():
            name = eqn.primitive.name
            why = f"`{name}` sums over it, and neither operand is zero where it is"
            self.ids.keep(axis.ids[~good[0]], why)
        if not self.quiet:
            self.summed.append(axis.ids)
            self.missed.append(axis.ids[~good[1]])
        return good[1]

    def product(self, eqn: Any, value: Value, record: Product) -> Value:
        """Notes a linear operation; gives its result the operation's number."""
        if self.quiet or self._scope is None:
            return value
        self.seen.append(Seen(record, self._scope, self._at))
        return dataclasses.replace(value, response=len(self.seen) - 1)

    def biased(self, response: int, bias: Value) -> None:
        """Notes that a leaf is added to the result of a linear operation."""
        own = [(k, a.ids) for k, a in enumerate(bias.axes) if a.ids is not None]
        if bias.leaf is not None:
            self.seen[response].bias = bias.leaf, [ids for _, ids in own]
            self.seen[response].along = tuple(k for k, _ in own)

    # ---- values to start from

    def leaf(self, array: Any, number: int, zeroed: bool = True) -> Value:
        """A leaf of the params, or a constant.

        Args:
          array: the array, or its shape and dtype.
          number: its number among leaves and constants.
          zeroed: whether it is zero where something is removed, as a leaf is.
        """
        shape, dtype = array.shape, array.dtype
        if not values.holds_numbers(dtype):
            return values.unknown(f"its dtype is {dtype}", len(shape))
        host = _host(array)
        free = [a for a, n in enumerate(shape) if n not in (0, 1)]
        whole, along = values.levels(ANY), [values.levels(ANY, shape[a]) for a in free]
        if host is not None:
            level, found = values.given(host, free)
            whole[1] = level
            for have, new in zip(along, found, strict=True):
                have[1] = new
            if not zeroed:
                whole[0] = level
                for have, new in zip(along, found, strict=True):
                    have[0] = new
        if zeroed and jnp.issubdtype(dtype, np.inexact):
            for level in along:
                level[0] = ZERO
        axes: list[Axis] = [ONE if n == 1 else Axis(None, "it is empty") for n in shape]
        for a, level in zip(free, along, strict=True):
            axes[a] = Axis(self.ids.fresh(shape[a]), "", level)
        value = values.number_of(host) if host is not None and not zeroed else None
        return Value(
            tuple(axes),
            whole,
            number=value,
            leaf=number,
            source=number,
            origin=(number, 0),
        )

    def constant(self, array: Any) -> Value:
        """An array that the program closes over; its entries tell indices apart."""
        value = self.leaf(array, self.leaves + len(self.constants), zeroed=False)
        self.constants.append(value)
        for axis in value.axes:
            if axis.ids is not None:
                self.ids.mark(axis.ids, VARIES)
        return value

    def closed_over(self) -> list[tuple[int, Value]]:
        """What is known of the arrays that the program closes over, numbered."""
        return list(enumerate(self.constants))

    # ---- the walk

    def run(
        self,
        closed: Any,
        inputs: Sequence[Value],
        loop: int | None = None,
        plain: bool = True,
    ) -> Scope:
        """Follows all axes through one jaxpr, in a loop or where the walk is."""
        jaxpr = closed.jaxpr
        if loop is None:
            loop = 0 if self._scope is None else self._scope.loop
        scope = Scope(closed, {}, {}, loop, plain)
        scope.values.update(zip(jaxpr.invars, inputs, strict=True))
        for var, array in zip(jaxpr.constvars, closed.consts, strict=True):
            scope.values[var] = self.constant(array)
        outer = self._scope, self._at
        for at, eqn in enumerate(jaxpr.eqns):
            self._scope, self._at = scope, at
            found = self.results(eqn, [scope.value(a) for a in eqn.invars])
            scope.values.update(zip(eqn.outvars, found, strict=True))
        self._scope, self._at = outer
        return scope

    def results(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """What is known of an operation's results."""
        self._uses(eqn, inputs)
        rule = RULES.get(eqn.primitive.name)
        calls = rule is None or eqn.primitive.name in CALLS
        if rule is None:
            body = jaxprs.called(eqn)
            found = (
                self.everything_stays(eqn, inputs)
                if body is None
                else self.call(body, inputs)
            )
        else:
            found = rule.follow(self, eqn, inputs)
        if not calls and not self.quiet:
            self.read(inputs, found)
        for value in found:
            if value.origin is None:
                self._used(value)
        return found

    def read(self, inputs: Sequence[Value], found: Sequence[Value]) -> None:
        """Counts what is computed with, rather than moved."""
        for value in inputs:
            if value.leaf is not None and {v.leaf for v in found} != {value.leaf}:
                self.reads[value.leaf] += 1
            moved = {v.response for v in found} == {value.response}
            if value.response is not None and not moved:
                self.responses[value.response] += 1

    def everything_stays(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """The results of an operation of which nothing is known."""
        why = f"`{eqn.primitive.name}` has no rule"
        all_stay(self, axes_of(inputs), why)
        return [values.unknown(why, len(var.aval.shape)) for var in eqn.outvars]

    def call(
        self, body: Any, inputs: Sequence[Value], loop: int | None = None
    ) -> list[Value]:
        """The results of a body that an operation of this scope runs."""
        scope, at = self._scope, self._at
        assert scope is not None
        name = scope.closed.jaxpr.eqns[at].primitive.name
        plain = scope.plain and name not in ("scan", "while", "cond")
        inner = self.run(body, inputs, loop, plain)
        scope.inner.setdefault(at, []).append(inner)
        return [inner.value(atom) for atom in body.jaxpr.outvars]

    def again(self) -> None:
        """Forgets the bodies of the operation at hand, which are run once more."""
        assert self._scope is not None
        self._scope.inner.pop(self._at, None)

    def enter(self, length: Any) -> int:
        """The number of a loop of so many steps within what is walked through."""
        assert self._scope is not None
        self.loops.append((self._scope.loop, length))
        return len(self.loops) - 1

    def stepped(self, origin: tuple[int, int], loop: int) -> None:
        """Notes that a loop goes through an axis of a leaf."""
        # a leaf that several loops go through has steps of none
        self.steps[origin] = -1 if self.steps.get(origin, loop) != loop else loop

    def repeats(self, loop: int) -> int:
        """How often the body of a loop runs, with all loops around it."""
        times = 1
        while loop > 0:
            loop, length = self.loops[loop]
            times *= length
        return times

    def _uses(self, eqn: Any, inputs: list[Value]) -> None:
        """Notes the loop in which ids are used.

        A leaf that a loop takes step by step, maybe cast before, is used within it.
        """
        if eqn.primitive.name == "convert_element_type" and inputs[0].origin:
            return
        for value in inputs[: entering(eqn, len(inputs))]:
            self._used(value)

    def _used(self, value: Value) -> None:
        if self.looping and self._scope is not None:
            for axis in value.axes:
                if axis.ids is not None:
                    self.ids.used(axis.ids, self._scope.loop)


def entering(eqn: Any, count: int) -> int:
    """How many operands are used as a whole, not step by step."""
    return sum(jaxprs.scan_counts(eqn)) if eqn.primitive.name == "scan" else count


def has_loops(jaxpr: Any) -> bool:
    """Whether a ``scan`` is in a jaxpr."""
    for eqn in jaxpr.eqns:
        bodies = [*eqn.params.values(), *eqn.params.get("branches", ())]
        bodies = [getattr(body, "jaxpr", body) for body in bodies]
        inner = any(has_loops(body) for body in bodies if hasattr(body, "eqns"))
        if eqn.primitive.name == "scan" or inner:
            return True
    return False


def _host(array: Any) -> np.ndarray | None:
    """The values of an array, if they are known and not too many."""
    if isinstance(array, jax.ShapeDtypeStruct) or not known(array):
        return None
    return np.asarray(array)
