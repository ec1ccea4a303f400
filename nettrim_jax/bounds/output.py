"""Bounds on how far a pruned network's output moves, on one batch.

The trained network is run once, with a known value and a radius beside it at every
operation that a pruned layer reaches. A layer starts anew: its known value is its own
response to the trained inputs (parallel form) or that of the trained weights to the
pruned network's inputs (cascade form), and its radius is the incoming one times the
layer's norm. Where no constant is known the bound stops, and names the operation.

Knows networks; knows no solver.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from nettrim_jax._compile import compiled
from nettrim_jax.bounds import products
from nettrim_jax.bounds.lipschitz import Ball, Rules, floating
from nettrim_jax.bounds.streams import Streams
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import Op, Ref
from nettrim_jax.tracing.sites import Network
from nettrim_jax.typing import Array

# where a ReLU, or what is alike, makes a response's error smaller
CUTS = ("max", "min", "clamp", "select_n")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far the output moves at most, relative to its norm; None where that stops.

    Attributes:
      theorem: the bound from the layers' own errors and norms.
      tight: the smaller of that and a bound that follows entries and one layer ahead.
      frobenius: the bound with Frobenius norms, and errors before the ReLUs.
      stop: the operation where it stops; empty if it does not.
    """

    theorem: Array | None
    tight: Array | None
    frobenius: Array | None
    stop: str = dataclasses.field(metadata={"static": True})


@compiled(static_argnames=("network", "changed", "cascade"))
def find(
    network: Network,
    old: Sequence[Array],
    new: Sequence[Array],
    batch: Sequence[Array],
    changed: frozenset[int],
    cascade: bool,
) -> Bounds:
    r"""Bounds a pruned network's deviation on a batch, for any new leaves.

    Let :math:`v` be the trained value of a slot, :math:`k` a known one and :math:`e`
    its radius. A layer whose trained weights :math:`W` became :math:`W'` has, in
    parallel form,

    .. math::
        k = v_{in} W', \qquad
        e = \|W'\| \, (\|k_{in} - v_{in}\|_F + e_{in}),

    a ball that contains the pruned network's value (Aghasi et al., 2020, theorem 2,
    where :math:`\|k - v\|_F` is the layer's own error). In cascade form, with the
    pruned network's value :math:`p` and :math:`\|k - v\|_F \le e`, it has

    .. math::
        k = p_{in} W, \qquad
        e = \|W\| \, \frac{\|p_{in} - v_{in}\|_F}{\|k_0 - v_0\|_F} \, e_{in}

    where :math:`k_0 - v_0` is that difference at the layer before (theorem 3; where
    the program was solved the ratio is at most :math:`\sqrt\gamma`).

    The parallel form once more, with the Frobenius norms of the weights and each
    layer's own error before its ReLU, is the bound of Dong, Chen and Pan (2017).

    Args:
      network: the network.
      old: the trained leaves.
      new: the pruned ones.
      batch: the batch's arrays.
      changed: positions of the leaves that may differ.
      cascade: whether to try the second form, too, and return the smaller bound.

    Returns:
      The bounds.
    """
    streams = Streams(network, network.consts, old, new, batch, changed)
    rules = Rules(streams.dtype)  # its norms serve these three forms
    parallel = _Parallel(streams, rules)
    theorem, stop = _bound(parallel)
    tight, _ = _bound(_Tight(streams, rules))
    frobenius, _ = _bound(_Published(parallel))
    if cascade:
        theorem = _smaller(theorem, _bound(_Cascade(streams, rules))[0])
    return Bounds(theorem, _smaller(tight, theorem), frobenius, stop)


def _smaller(one: Array | None, other: Array | None) -> Array | None:
    if one is None or other is None:
        return other if one is None else one
    return jnp.fmin(one, other)


@dataclasses.dataclass(frozen=True)
class _Stop:
    """The operation from which on no constant is known."""

    where: str


def _bound(form: "_Parallel") -> tuple[Array | None, str]:
    """The bound on the outputs' relative movement, and where it stops."""
    s, rules = form.s, form.rules
    for op in s.network.flat.block.ops:
        if any(s.differs(ref) for ref in op.inputs):
            form.run(op)
    off2, size2 = jnp.zeros((), s.dtype), jnp.zeros((), s.dtype)
    for ref in s.network.flat.block.outputs:
        v = s.v(ref)
        if not jnp.issubdtype(jnp.result_type(v), jnp.floating):
            continue
        finite = jnp.where(jnp.isinf(v), 0, v)  # as for the deviation itself
        size2 = size2 + rules.size(finite) ** 2
        if s.differs(ref):
            found = form.moved(ref)
            if isinstance(found, _Stop):
                return None, found.where
            off2 = off2 + found**2
    # NaN comes from zero times infinity
    off2 = jnp.where(jnp.isnan(off2), jnp.inf, off2)
    return jnp.sqrt(jnp.where(off2 == 0, 0, off2 / size2)), ""


class _Parallel:
    """The recursion over layers whose known values are at the trained inputs."""

    def __init__(self, streams: Streams, rules: Rules):
        self.s, self.rules = streams, rules
        self.found: dict[Ref, Ball | _Stop] = {}  # where the pruned value is not known

    def run(self, op: Op) -> None:
        """Finds the balls of an operation's outputs."""
        s = self.s
        steady = [s.differs(ref) and not s.data(ref) for ref in op.inputs]
        moving = [s.differs(ref) and s.data(ref) for ref in op.inputs]
        stops = [x for ref in op.inputs if isinstance(x := self.found.get(ref), _Stop)]
        if op.name in products.LAYERS and any(steady) and any(moving):
            found = stops[0] if stops else self.layer(op, moving.index(True))
        elif not any(ref in self.found for ref in op.inputs):
            return  # the pruned value is known exactly
        elif op.name == "select_n" and isinstance(ball := self.kink(op), Ball):
            found = [ball]
        elif stops:
            found = stops[0]
        else:
            found = self.passed(op)
        if found is None:
            found = _Stop(self.where(op))
        if isinstance(found, _Stop):
            found = [found] * len(op.outputs)
        for slot, ball in zip(op.outputs, found, strict=True):
            if ball is not None:
                self.found[slot] = ball

    def passed(self, op: Op) -> "list[Ball | None] | None":
        """The balls of the outputs of an operation other than a changed layer."""
        args = [self.operand(ref) for ref in op.inputs]
        if any(a is None for a in args):
            return None
        return self.rules.apply(op, args)

    def operand(self, ref: Ref) -> Any:
        """A ball, or the known value; None if there is neither."""
        return self.found[ref] if ref in self.found else self.s.p(ref)

    def layer(self, op: Op, at: int) -> list[Ball] | None:
        """The ball of a changed layer, whose operand ``at`` follows other ones."""
        ref, other = op.inputs[at], op.inputs[1 - at]
        if not floating(self.s.v(ref)) or not products.linear_known(op, at):
            return None
        return [self.restart(op, at, ref, self.s.v(other), self.s.p(other))]

    def restart(self, op: Op, at: int, ref: Ref, old: Any, new: Any) -> Ball:
        """The ball of a changed layer, which starts from the layer's own error."""
        v = self.s.v(ref)
        e = self.rules.linear_norm(op, at, v, new) * self.moved(ref)
        return self.rules.ball(_product(op, at, v, new)[0], e, None)

    def moved(self, ref: Ref) -> Any:
        """A bound on the distance of the pruned value from the trained one."""
        x = self.found.get(ref)
        if isinstance(x, _Stop):
            return x
        if x is None:
            return self.rules.distance(self.s.p(ref), self.s.v(ref))
        return self.rules.distance(x.k, self.s.v(ref)) + x.e

    def kink(self, op: Op) -> Ball | None:
        """The ball of ``where(x > 0, a x, b x)``, as steep as its steeper half."""
        source = self.s.made_by.get(_slot(op.inputs[0]))
        if source is None or source.name not in ("gt", "ge", "lt", "le"):
            return None
        x, zero = source.inputs
        if self.s.is_zero(x):
            x, zero = zero, x
        ball = self.found.get(x)
        if not self.s.is_zero(zero) or not isinstance(ball, Ball):
            return None
        slopes = [self.slope(case, x) for case in op.inputs[1:]]
        cases = [self.operand(case) for case in op.inputs[1:]]
        if any(slope is None for slope in slopes):
            return None
        sides = [ball.k if ref == x else self.s.v(ref) for ref in source.inputs]
        (side,) = jaxprs.apply(source, *sides)
        known = [case.k if isinstance(case, Ball) else case for case in cases]
        (k,) = jaxprs.apply(op, side, *known)
        steep = functools.reduce(jnp.maximum, slopes)  # pyright: ignore
        E = None if ball.E is None else steep * ball.E
        return self.rules.ball(k, self.rules.largest(steep) * ball.e, E)

    def slope(self, ref: Ref, x: Ref) -> Array | None:
        """The magnitude of ``ref / x`` where that is known."""
        made, dtype = self.s.made_by.get(_slot(ref)), jnp.result_type(self.s.v(x))
        if ref == x or self.s.is_zero(ref):
            return jnp.asarray(ref == x, dtype)
        if made is None or made.name != "mul" or x not in made.inputs:
            return None
        other = made.inputs[1 - made.inputs.index(x)]
        if other in self.found or (self.s.differs(other) and self.s.data(other)):
            return None
        return jnp.abs(jnp.asarray(self.operand(other)))

    def where(self, op: Op) -> str:
        """The names of the operation and of the last layer before it."""
        network, upstream = self.s.network, 0
        for ref in op.inputs:
            upstream |= network.upstream.get(_slot(ref), 0)
        before = [
            (use.op.id, site.path)
            for site in network.sites
            for use in site.uses
            if use.mark & upstream
        ]
        return f"{op.name}, after {max(before)[1]}" if before else op.name


class _Tight(_Parallel):
    """The recursion with entrywise radii, where known errors pass a layer exactly."""

    def restart(self, op: Op, at: int, ref: Ref, old: Any, new: Any) -> Ball:
        v, x = self.s.v(ref), self.found.get(ref)
        if not isinstance(x, Ball):
            x = Ball(self.s.p(ref), jnp.zeros((), self.s.dtype), jnp.zeros_like(v))
        (known,) = _product(op, at, x.k - v, new)
        e = self.rules.linear_norm(op, at, v, new) * x.e + self.rules.size(known)
        E = None
        if x.E is not None:
            E = jnp.abs(known) + _product(op, at, x.E, jnp.abs(new))[0]
        return self.rules.ball(_product(op, at, v, new)[0], e, E)


class _Published(_Parallel):
    """The recursion of Dong et al., after the parallel one was run.

    A known value in front of a ReLU gives way to the trained one, and its error joins
    the radius, so that the ReLU makes nothing of it smaller.
    """

    def __init__(self, parallel: _Parallel):
        super().__init__(parallel.s, Rules(parallel.s.dtype, products.frobenius))
        self.parallel = parallel

    def run(self, op: Op) -> None:
        for ref in op.inputs if op.name in CUTS else ():
            if self.s.differs(ref) and self.s.data(ref) and floating(self.s.v(ref)):
                moved = self.moved(ref)
                if not isinstance(moved, _Stop):
                    self.found[ref] = self.rules.ball(self.s.v(ref), moved, None)
        super().run(op)
        for slot in op.outputs:
            # where only these balls stop, what is known without them holds
            if isinstance(self.found.get(slot), _Stop):
                del self.found[slot]
                if slot in self.parallel.found:
                    self.found[slot] = self.parallel.found[slot]


class _Cascade(_Parallel):
    """The recursion over layers whose growths are measured on the pruned network."""

    def __init__(self, streams: Streams, rules: Rules):
        super().__init__(streams, rules)
        self.slack: dict[Ref, Array] = {}  # e over the distance from k to v

    def run(self, op: Op) -> None:
        super().run(op)
        before = [self.slack[ref] for ref in op.inputs if ref in self.slack]
        for slot in op.outputs:
            if before and isinstance(self.found.get(slot), Ball):
                # a restart has set its own
                self.slack.setdefault(slot, functools.reduce(jnp.maximum, before))

    def operand(self, ref: Ref) -> Any:
        if ref in self.found:
            return self.found[ref]
        if not (self.s.differs(ref) and self.s.data(ref)):
            return self.s.v(ref)
        # only a ball can stand for a value that depends on the data and the pruning
        return Ball(self.s.p(ref), self.moved(ref)) if floating(self.s.v(ref)) else None

    def moved(self, ref: Ref) -> Any:
        x, v = self.found.get(ref), self.s.v(ref)
        if isinstance(x, _Stop):
            return x
        off = self.rules.distance(self.s.p(ref), v)
        if x is None:
            return off
        slack = self.ratio(x, v)
        return off * jnp.minimum(slack, self.slack.get(ref, slack))

    def ratio(self, x: Ball, v: Array) -> Array:
        far = self.rules.distance(x.k, v)
        return jnp.where(far > 0, jnp.maximum(x.e / jnp.where(far > 0, far, 1), 1), 1)

    def restart(self, op: Op, at: int, ref: Ref, old: Any, new: Any) -> Ball:
        e = self.rules.linear_norm(op, at, self.s.v(ref), old) * self.moved(ref)
        ball = self.rules.ball(_product(op, at, self.s.p(ref), old)[0], e, None)
        # before the ReLU, as in the program; the ReLU only brings k nearer to v
        self.slack[op.outputs[0]] = self.ratio(ball, self.s.v(op.outputs[0]))
        return ball


def _slot(ref: Ref) -> int:
    """The slot, or -1 for a literal."""
    return ref if isinstance(ref, int) else -1


def _product(op: Op, at: int, x: Any, w: Any) -> list[Any]:
    return jaxprs.apply(op, *((x, w) if at == 0 else (w, x)))
