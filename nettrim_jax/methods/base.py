"""What every method is: records, and the protocol between a method and the engine.

Adding a method touches its own file, that of its statistic and the package's
``__init__``; no other room knows which methods there are.

Knows activations and statistics; knows no other method and no network.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from nettrim_jax._numerics import matmul
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.calibration.statistics import Statistic, without_rows
from nettrim_jax.convex.config import ADMM
from nettrim_jax.methods.budget import Budget, Share
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.typing import Array


class LayerKind(NamedTuple):
    """What is static of a site; hashable."""

    shape: tuple[int, int, int]  # b, d_in, d_out
    relu: bool  # whether a ReLU follows
    biased: bool  # whether it has a bias of its own that the method may move
    layers: int  # to how many the lanes belong: the steps of a scan are apart
    channels: int  # of the inputs, which a convolution has at each place of its window
    held: int  # rows that no solver sees
    fed: bool  # whether pruned layers feed it


class LayerData(NamedTuple):
    """The arrays of one site: where its weights stand, and what it saw."""

    weights: Entries  # [b, d_in, d_out], trained
    bias: Entries | None  # [b, d_out], trained; None if it does not move
    seen: Activation

    @property
    def W0(self) -> Array:
        """The trained weights in the dtype of the solver, ``[b, d_in, d_out]``."""
        return entries.read(self.weights).astype(self.seen.X.dtype)

    @property
    def bias0(self) -> Array | None:
        """The trained bias in the dtype of the solver, ``[b, d_out]``."""
        if self.bias is None:
            return None
        return entries.read(self.bias).astype(self.seen.X.dtype)

    def to_fit(self, held: int) -> Activation:
        """What was seen on all rows but those held out."""
        _, rest = held_out(self.seen.X.shape[1], held)
        rows = {name: a[:, rest] for name, a in self.seen.rows().items()}
        return self.seen._replace(**rows)

    def moments(self, held: int) -> Array:
        """Second moments of ``(X, 1)`` over all rows but those held out."""
        seen = self.seen
        out, _ = held_out(seen.X.shape[1], held)
        return without_rows(seen.stats["moments"], seen.X[:, out], seen.valid[:, out])

    def finite(self) -> Array:
        """Whether all trained answers are numbers, ``[b]``."""
        answers = jnp.where(self.seen.valid[:, :, None], self.seen.P, 0)
        return jnp.isfinite(answers).all((1, 2))


class Answer(NamedTuple):
    """What a method makes of one site, in the units of its params."""

    W: Array  # [b, d_in, d_out]
    bias: Array | None  # [b, d_out]; None if it does not move
    result: Array  # [b] or [layers], int32, see nettrim_jax.results
    figures: dict[str, Array]  # of the report's columns, per lane; the largest counts
    live: Array | None = None  # [b] bool, what has changed at all; None for all
    fallback: Array | None = None  # [b, d_in, d_out], where it failed; None as trained


class Lanes(NamedTuple):
    """How to solve a stack: the solver's settings, and what runs a stack's lanes.

    ``each(function, stack, **static)`` is the function of every entry along the stack's
    first axis, together or in turns, compiled once per shape; what is static is given
    to it by name.
    """

    config: ADMM
    each: Callable[..., Any]


class Cost(NamedTuple):
    """What one entry of a stack takes: terms of its largest product, and memory."""

    terms: int
    bytes: int


class Method(Protocol):
    """What the user chooses for a layer: a frozen record, a pytree.

    ``prepare`` makes a problem of a site, ``solve`` solves the joined problems of all
    sites that are alike, and ``conclude`` makes the weights of one site of its part of
    what was solved. Where all is closed form ``prepare`` returns ``None``, and there is
    nothing to solve. Each jits its own steps, with what must be static as plain values.
    """

    @property
    def bias(self) -> str:
        """``"fixed"`` if the layer's own bias stays."""
        ...

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What it asks of the data beyond rows."""
        ...

    @property
    def shared(self) -> Budget | Share | None:
        """What it asks of the network as a whole; ``allocation`` answers.

        A method that shares a :class:`Budget` has ``allotted(epsilon)``, one that has
        its :class:`Share` of a number ``counted(left, shape)``: the same method with
        what is one layer's.
        """
        ...

    def check(self) -> None:
        """Raises MethodError if what was asked for is not what it should be."""
        ...

    def bind(self, kind: LayerKind, cascade: bool) -> "Method":
        """The same method for one layer; raises MethodError if it does not fit."""
        ...

    def prepare(self, data: LayerData, kind: LayerKind) -> Any:
        """The site's problem, a pytree of arrays with a leading axis, or None.

        What of the method is an array belongs into it: joined problems are solved by
        the method of the first.
        """
        ...

    def solve(self, problem: Any, lanes: Lanes, start: Any = None) -> Any:
        """What solves the problem, with the same leading axis.

        Args:
          problem: of one site or of several that are alike, joined.
          lanes: how to solve.
          start: what solved like problems, to start from.
        """
        ...

    def conclude(self, data: LayerData, solved: Any, kind: LayerKind) -> Answer:
        """The site's new weights, of what solved its problem."""
        ...

    def cost(self, problem: Any) -> Cost:
        """What the solve of one entry of a stack takes."""
        ...


def held_out(n: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are held out, and the others.

    Rows come in random order, those that do not count last, so evenly spaced ones take
    the same share of those that do.
    """
    out = np.arange(held) * n // max(held, 1) + (n // max(held, 1)) // 2
    return out, np.setdiff1d(np.arange(n), out)


def squared_errors(seen: Activation, W: Array, move: Array | None, relu: bool) -> Array:
    """Squared errors of weights as stored, after the ReLU, ``[b, n, d_out]``.

    Args:
      seen: the rows.
      W: ``[b, d_in, d_out]``.
      move: what a bias adds to the response, ``[b, d_out]``.
      relu: whether a ReLU follows.

    Returns:
      The squares; zero on rows that do not count.
    """
    answer = matmul(seen.X, W.astype(seen.X.dtype) * seen.scale[:, None, :]) + seen.t
    answer = answer if move is None else answer + move[:, None, :]
    want = seen.P
    if relu:
        answer, want = jnp.maximum(answer, 0), jnp.maximum(want, 0)
    return jnp.where(seen.valid[:, :, None], (answer - want) ** 2, 0)


def together(good: Array, layers: int) -> Array:
    """Whether all lanes of a layer are good: they share the pattern's count."""
    return jnp.repeat(good.reshape(layers, -1).all(1), len(good) // layers)


def by_layer(a: Array, layers: int) -> Array:
    """Lanes ``[b, ...]`` apart by layer, ``[layers, b / layers, ...]``."""
    return a.reshape(layers, -1, *a.shape[1:])
