"""How an operation propagates an error, at most: one rule per primitive of JAX.

A ``Ball`` is a known array and a bound on the distance of an unknown one from it, in
the Frobenius norm and, where it is followed, entry by entry. A rule takes operands,
balls or known arrays, and bounds the distance of the result for the unknown ones from
that for the known ones. An operation without a rule has no bound.

Knows operations; knows no layers and no pruning.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax.bounds import products, slopes, spectral
from nettrim_jax.tracing import jaxprs
from nettrim_jax.tracing.jaxprs import Op
from nettrim_jax.typing import Array, DTypeLike


class Ball(NamedTuple):
    """A known array and bounds on the distance of an unknown one from it."""

    k: Array
    e: Array  # [], Frobenius norm
    E: Array | None = None  # like k, entry by entry

    @property
    def radius(self) -> Array:
        """A bound on the error of each entry: like ``k``, or a scalar."""
        e = self.e.astype(self.k.dtype)
        return e if self.E is None else jnp.fmin(self.E, e)


Radius = tuple[Array, Array | None]  # e and E of an output
Operand = Ball | Any  # or a known array


@dataclasses.dataclass
class Rules:
    """Applies rules; holds the norms of known operands, each computed once.

    Attributes:
      dtype: dtype of the norms.
      norm: what bounds an operation's norm, a function of :mod:`products`.
      norms: norms by operation, position and identity of the operand.
    """

    dtype: DTypeLike
    norm: products.Norm = products.norm
    norms: dict[Any, tuple[Array, Any]] = dataclasses.field(default_factory=dict)

    def apply(self, op: Op, args: Sequence[Operand]) -> list[Ball | None] | None:
        """The balls of an operation's outputs; None where no constant is known.

        An output that no ball reaches is None, too.
        """
        if op.name in PAIRS:
            args = self.spread(args)
        known = [a.k if isinstance(a, Ball) else a for a in args]
        floats = [floating(k) for k in known]
        balls = [i for i, a in enumerate(args) if isinstance(a, Ball)]
        if op.name not in RULES or not all(floats[i] for i in balls):
            return None
        radii = RULES[op.name](self, op, args)
        if radii is None:
            return None
        outputs = jaxprs.apply(op, *known)
        return [
            None if radius is None else self.ball(k, *radius)
            for k, radius in zip(outputs, radii, strict=True)
        ]

    def spread(self, args: Sequence[Operand]) -> list[Operand]:
        """Repeats balls to the shape of the result, as the operation does."""
        shapes = [jnp.shape(a.k if isinstance(a, Ball) else a) for a in args]
        full = jnp.broadcast_shapes(*shapes)

        def spread(a: Operand) -> Operand:
            if not isinstance(a, Ball) or a.k.shape == full:
                return a
            E = None if a.E is None else jnp.broadcast_to(a.E, full)
            times = math.sqrt(math.prod(full) / max(a.k.size, 1))
            return Ball(jnp.broadcast_to(a.k, full), times * a.e, E)

        return [spread(a) for a in args]

    def ball(self, k: Array, e: Array, E: Array | None) -> Ball:
        """A ball whose radii limit each other."""
        # NaN comes from zero times infinity: nothing is known then
        e = jnp.where(jnp.isnan(e), jnp.inf, e).astype(self.dtype)
        if E is not None:
            E = jnp.fmin(E, e.astype(E.dtype)).astype(k.dtype)
            e = jnp.fmin(e, self.size(E))
        return Ball(k, e, E)

    def size(self, a: Array) -> Array:
        """Frobenius norm, summed axis by axis: one long sum loses digits."""
        square = jnp.asarray(a, self.dtype) ** 2
        while square.ndim:
            square = jnp.sum(square, axis=-1)
        return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))

    def distance(self, a: Any, b: Any) -> Array:
        """Frobenius norm of the difference; infinities that are equal have none."""
        return self.size(jnp.where(a == b, 0, a - b))

    def largest(self, a: Any) -> Array:
        """The largest magnitude."""
        return jnp.max(jnp.abs(jnp.asarray(a)), initial=0).astype(self.dtype)

    def linear_norm(self, op: Op, at: int, x: Any, w: Any) -> Array:
        """Norm of a product with ``w`` as a map of operand ``at``, shaped as ``x``."""
        key = (op.id, at, id(w))
        if key not in self.norms:
            norm = self.norm(op, at, x.shape, jnp.asarray(w))
            self.norms[key] = norm.astype(self.dtype), w  # w lives, so id(w) is unique
        return self.norms[key][0]


Rule = Callable[[Rules, Op, Sequence[Operand]], Sequence[Radius | None] | None]
RULES: dict[str, Rule] = {}
# one of the two operands may be a single number, or have axes of length one
PAIRS = frozenset("add sub add_any mul div max min".split())


def floating(a: Any) -> bool:
    """Whether these are floating numbers whose rounding is small."""
    dtype = jnp.result_type(a)
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32


def rule(names: str, *extra: Any) -> Callable:
    """Registers a rule under these primitives' names."""

    def register(function: Callable) -> Callable:
        for name in names.split():
            RULES[name] = functools.partial(function, *extra) if extra else function
        return function

    return register


# ---- entries moved, added and scaled


def _alone(args: Sequence[Operand], at: int = 0) -> Ball | None:
    """Operand ``at`` if it is the only ball."""
    only = [isinstance(a, Ball) for a in args] == [i == at for i in range(len(args))]
    return args[at] if only else None


def _entries(join: Callable[..., Array], *balls: Ball) -> Array | None:
    """The entrywise radii joined; None where they are not followed."""
    Es = [ball.E for ball in balls]
    return None if any(E is None for E in Es) else join(*Es)


def _radii_of(op: Op, args: Sequence[Operand]) -> list[Array] | None:
    """A linear operation on the entrywise radii; those of known operands are zero."""
    balls = [a for a in args if isinstance(a, Ball)]
    if balls[0].E is None:
        return None
    given = []
    for a in args:
        if isinstance(a, Ball):
            given.append(a.E)
        else:
            is_float = jnp.issubdtype(jnp.result_type(a), jnp.floating)
            given.append(jnp.zeros_like(a) if is_float else a)
    return jaxprs.apply(op, *given)


def _along(e: Array, Es: list[Array] | None, count: int = 1) -> list[Radius]:
    return [(e, None if Es is None else Es[i]) for i in range(count)]


@rule(
    "reshape transpose squeeze expand_dims rev slice pad concatenate copy copy_p name "
    "dynamic_slice dynamic_update_slice split select_n convert_element_type "
    "stop_gradient"
)
def _moved(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius] | None:
    # every entry of an input is at most once in the output
    if op.name == "convert_element_type" and not floating(op.params["new_dtype"]):
        return None
    if op.name == "pad" and isinstance(args[1], Ball):  # it is in many places
        return None
    e = rules.size(jnp.stack([a.e for a in args if isinstance(a, Ball)]))
    return _along(e, _radii_of(op, args), len(op.outputs))


@rule("neg abs")
def _same_size(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    (x,) = args
    return [(x.e, x.E)]


@rule("optimization_barrier")
def _apart(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius | None]:
    return [(a.e, a.E) if isinstance(a, Ball) else None for a in args]


@rule("add sub add_any")
def _sum(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    balls = [a for a in args if isinstance(a, Ball)]
    e, E = balls[0].e, balls[0].E
    if len(balls) == 2:
        e = e + balls[1].e
        E = _entries(jnp.add, *balls)
    return [(e, E)]


@rule("broadcast_in_dim reduce_sum")
def _repeated(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius] | None:
    x = _alone(args)
    if x is None:
        return None
    Es = _radii_of(op, args)
    if op.name == "broadcast_in_dim":
        times = math.prod(op.params["shape"]) / max(x.k.size, 1)
    else:
        times = math.prod(x.k.shape[axis] for axis in op.params["axes"])
    return _along(math.sqrt(times) * x.e, Es)


@rule("cumsum")
def _cumulated(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    # Schur's test: no sum in a row or column of the matrix of ones exceeds its length
    (x,) = args
    return _along(x.k.shape[op.params["axis"]] * x.e, _radii_of(op, args))


@rule("gather")
def _gathered(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius] | None:
    x = _alone(args)
    if x is None:
        return None
    like = jax.ShapeDtypeStruct(x.k.shape, x.k.dtype)
    back = jax.linear_transpose(lambda a: jaxprs.apply(op, a, args[1])[0], like)
    out = jax.eval_shape(lambda a: jaxprs.apply(op, a, args[1])[0], like)
    (times,) = back(jnp.ones(out.shape, out.dtype))
    return _along(jnp.sqrt(rules.largest(times)) * x.e, _radii_of(op, args))


@rule("reduce_window_sum reduce_window_max reduce_window_min")
def _windows(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    (x,) = args
    p = op.params
    lengths, strides = p["window_dimensions"], p["window_strides"]
    times = spectral.overlap(lengths, strides, p["window_dilation"])
    if op.name == "reduce_window_sum":
        # Schur's test: the largest sums of the matrix's rows and of its columns
        return _along(math.sqrt(times * math.prod(lengths)) * x.e, _radii_of(op, args))
    E = x.E
    if E is not None:
        E = jax.lax.reduce_window(
            E,
            jnp.zeros((), E.dtype),
            jax.lax.max,
            lengths,
            strides,
            p["padding"],
            p["base_dilation"],
            p["window_dilation"],
        )
    return [(math.sqrt(times) * x.e, E)]


@rule("reduce_max reduce_min")
def _extreme(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    (x,) = args
    E = None if x.E is None else jnp.max(x.E, axis=op.params["axes"], initial=0)
    return [(x.e, E)]


@rule("cummax cummin")
def _extreme_so_far(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    (x,) = args
    axis, reverse = op.params["axis"], op.params["reverse"]
    E = None if x.E is None else jax.lax.cummax(x.E, axis, reverse)
    return [(math.sqrt(x.k.shape[axis]) * x.e, E)]


@rule("mul")
def _times(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    a, b = args
    if isinstance(a, Ball) and isinstance(b, Ball):
        e = rules.largest(a.k) * b.e + rules.largest(b.k) * a.e + a.e * b.e
        A, B = jnp.abs(a.k), jnp.abs(b.k)
        return [(e, _entries(lambda E, F: A * F + B * E + E * F, a, b))]
    x, c = (a, b) if isinstance(a, Ball) else (b, a)
    size = jnp.abs(jnp.asarray(c))
    return [(rules.largest(c) * x.e, None if x.E is None else size * x.E)]


@rule("div")
def _ratio(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    a, b = args
    if not isinstance(b, Ball):
        scale = 1 / jnp.abs(jnp.asarray(b))
        E = None if a.E is None else scale * a.E
        return [(rules.largest(scale) * a.e, E)]
    known = a.k if isinstance(a, Ball) else a
    # |a'/b' - a/b| <= (|a' - a| + |a/b| |b' - b|) / |b'|
    least = jnp.abs(b.k) - b.radius
    ratio, over = jnp.abs(known / b.k), jnp.where(least > 0, 1 / least, jnp.inf)
    e, E = rules.largest(ratio) * b.e, _entries(lambda F: ratio * F, b)
    if isinstance(a, Ball):
        e, E = e + a.e, _entries(lambda E, F: E + ratio * F, a, b)
    return [(rules.largest(over) * e, None if E is None else _scaled(over, E))]


# ---- products


@rule("dot_general conv_general_dilated")
def _product(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius] | None:
    a, b = args
    if isinstance(a, Ball) and isinstance(b, Ball):
        return _product_of_two(rules, op, a, b)
    at = 0 if isinstance(a, Ball) else 1
    x, w = args[at], args[1 - at]
    if not products.linear_known(op, at):
        return None
    e = rules.linear_norm(op, at, x.k, w) * x.e
    if x.E is None:
        return [(e, None)]
    size = jnp.abs(jnp.asarray(w))
    both = (x.E, size) if at == 0 else (size, x.E)
    return [(e, jaxprs.apply(op, *both)[0])]


def _product_of_two(rules: Rules, op: Op, a: Ball, b: Ball) -> list[Radius] | None:
    if op.name != "dot_general":
        return None
    norms = [rules.linear_norm(op, 1, b.k, a.k), rules.linear_norm(op, 0, a.k, b.k)]
    e = norms[0] * b.e + norms[1] * a.e + a.e * b.e

    def join(E: Array, F: Array) -> Array:
        (left,) = jaxprs.apply(op, jnp.abs(a.k) + E, F)
        (right,) = jaxprs.apply(op, E, jnp.abs(b.k))
        return left + right

    return [(e, _entries(join, a, b))]


# ---- scalar functions


@rule("max min clamp")
def _cut(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius] | None:
    balls = [a for a in args if isinstance(a, Ball)]
    if len(balls) == 1:
        x = balls[0]
        if op.name == "clamp" and args[1] is not x:
            return None
        return [(x.e, _monotone(op, args, x))]
    if op.name == "clamp":
        return None
    # |max(a, b) - max(a', b')| is at most the larger of the two errors
    a, b = balls
    E = _entries(jnp.maximum, a, b)
    return [(rules.size(jnp.stack([a.e, b.e])), E)]


@rule(" ".join(slopes.SLOPES))
def _scalar(rules: Rules, op: Op, args: Sequence[Operand]) -> list[Radius]:
    (x,) = args
    slope = slopes.SLOPES[op.name](x.k, x.radius, op.params)
    e = rules.largest(slope) * x.e
    if x.E is None:
        return [(e, None)]
    if op.name in slopes.MONOTONE:
        return [(e, _monotone(op, args, x))]
    return [(e, _scaled(slope, x.E))]


def _monotone(op: Op, args: Sequence[Operand], x: Ball) -> Array | None:
    """A bound on the error of a monotone function of one ball, entry by entry."""
    if x.E is None:
        return None

    def at(value: Array) -> Array:
        return jaxprs.apply(op, *[value if a is x else a for a in args])[0]

    middle, r = at(x.k), x.radius
    off = jnp.maximum(jnp.abs(at(x.k + r) - middle), jnp.abs(middle - at(x.k - r)))
    return jnp.where(r == 0, 0, jnp.where(jnp.isnan(off), jnp.inf, off))


def _scaled(slope: Array, E: Array) -> Array:
    return jnp.where(E == 0, 0, slope * E)
