"""The protocol of a method, and the records between a method and the engine.

Adding a method touches only its own file, that of its statistic and the package's
``__init__``; no other package knows which methods there are.

Knows activations, statistics and sites; knows no other method.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, Self

import jax
import numpy as np

from nettrim_jax._clip import NO_CLIP, Clip
from nettrim_jax._numerics import for_each, matmul, numpy_of
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.calibration.statistics import Statistic, without_rows
from nettrim_jax.convex.config import ADMM
from nettrim_jax.methods.budget import Budget, Share, Together, Whole
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Entries
from nettrim_jax.tracing.sites import Site
from nettrim_jax.typing import Array


class LayerKind(NamedTuple):
    """The static facts about a site; hashable."""

    shape: tuple[int, int, int]  # b, d_in, d_out
    clip: Clip  # the limits between which its response passes
    biased: bool  # whether it has a bias of its own that the method may move
    layers: int  # number of layers of the lanes: each step of a scan is one
    channels: int  # input channels, which are at each place of a convolution's window
    held: int  # number of rows that no solver sees
    fed: bool  # whether pruned layers feed it
    routed: bool = False  # whether each lane has rows of its own, as experts have

    @property
    def of_rows(self) -> "LayerKind":
        """Only which rows there are, for steps that need no more and compile less."""
        return self._replace(clip=NO_CLIP, biased=False, fed=False, channels=0)


class LayerData(NamedTuple):
    """The arrays of one site: its weights and bias in the leaves, and its rows."""

    weights: Entries  # [b, d_in, d_out], trained
    bias: Entries | None  # [b, d_out], trained; None if it does not move
    seen: Activation
    allowed: Array | None = None  # [b, d_in, d_out] bool, others stay zero; None: all

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
        """The activation on all rows but those held out."""
        _, rest = held_out(self.seen.X.shape[1], held)
        rows = {name: a[:, rest] for name, a in self.seen.rows().items()}
        return self.seen._replace(**rows)

    def moments(self, held: int) -> Array:
        """Second moments of ``(X, 1)`` over all rows but those held out."""
        seen = self.seen
        out, _ = held_out(seen.X.shape[1], held)
        return without_rows(seen.stats["moments"], seen.X[:, out], seen.valid[:, out])

    def live(self, kind: LayerKind) -> Array:
        """Whether any of the rows to fit reached a lane, ``[b]``; else weights stay.

        A row that is not sent to an expert is zero there, if it is there at all.
        """
        rows = self.to_fit(kind.held)
        reached = rows.valid
        if kind.routed:
            reached = reached & (rows.X != 0).any(2)
        return reached.any(1)

    def finite(self) -> Array:
        """Whether all trained responses are finite, ``[b]``."""
        xp = numpy_of(self.seen.P)
        answers = xp.where(self.seen.valid[:, :, None], self.seen.P, 0)
        return xp.isfinite(answers).all((1, 2))


class Answer(NamedTuple):
    """A method's new weights of one site, in the units of the params."""

    W: Array  # [b, d_in, d_out]
    bias: Array | None  # [b, d_out]; None if it does not move
    result: Array  # [b] or [layers], int32, see nettrim_jax.results
    figures: dict[str, Array]  # columns of the report, per lane; the largest counts
    live: Array | None = None  # [b] bool, the lanes that change; None for all
    fallback: Array | None = None  # [b, d_in, d_out], of failed lanes; None: as trained
    pattern: Any = None  # which chose the weights; None: those that are not zero


class Lanes(NamedTuple):
    """How to solve a stack: the solver's settings, and a map over the stack.

    ``each(function, stack, **static)`` applies the function to each entry along the
    stack's first axis, together or in turns, and compiles it once per shape. The static
    arguments are hashable, and are passed by name.
    """

    config: ADMM
    each: Callable[..., Any]


class Cost(NamedTuple):
    """The cost of one entry of a stack: terms of its largest product, and memory."""

    terms: int
    bytes: int


class Method(Protocol):
    """The user's choice for a layer: a frozen record and a pytree.

    ``prepare`` makes the problem of a site, ``solve`` solves the joined problems of all
    similar sites, and ``conclude`` makes the new weights of one site from its part of
    the solution. A closed form has nothing to solve, and its ``prepare`` returns
    ``None``. A method jits its own steps, with plain values as static arguments.
    """

    @property
    def bias(self) -> str:
        """``"fixed"`` if the layer's own bias stays."""
        ...

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The statistics that it asks for beside rows."""
        ...

    @property
    def shared(self) -> Budget | Share | Together | Whole | None:
        """Its request to the whole network, which ``allocation`` meets.

        A method with a :class:`Budget` is a :class:`Budgeted`, and one with a
        :class:`Share` has ``counted(left, shape)``: both return the same method for one
        layer. One with :class:`Whole` chooses units, see :class:`Choosing`, and one
        with :class:`Together` prunes all layers at once, see :class:`Joining`.
        """
        ...

    def check(self) -> None:
        """Raises MethodError if an attribute is not valid."""
        ...

    def bind(self, kind: LayerKind, cascade: bool) -> "Method":
        """The same method for one layer; raises MethodError if it does not fit."""
        ...

    def prepare(self, data: LayerData, kind: LayerKind) -> Any:
        """The site's problem, a pytree of arrays with a leading axis, or None.

        It contains all arrays of the method, because the method of the first site
        solves the joined problems.
        """
        ...

    def solve(self, problem: Any, lanes: Lanes, start: Any = None) -> Any:
        """The solution of the problem, with the same leading axis.

        Args:
          problem: the problem of one site, or the joined problems of similar sites.
          lanes: how to solve.
          start: the solution of a similar problem, to start from.
        """
        ...

    def conclude(self, data: LayerData, solved: Any, kind: LayerKind) -> Answer:
        """The site's new weights, from the solution of its problem.

        Weights outside ``data.allowed`` become zero, whatever it makes of them.
        """
        ...

    def cost(self, problem: Any) -> Cost:
        """The cost of one entry of a stack."""
        ...


class Direct:
    """The base of closed forms."""

    def prepare(self, data: LayerData, kind: LayerKind) -> None:
        """Returns None, as there is nothing to solve."""

    def solve(self, problem: None, lanes: Lanes, start: None = None) -> None:
        """Is never called, as there is no problem."""

    def cost(self, problem: None) -> Cost:
        """The cost, which is zero."""
        return Cost(0, 0)


class Unsolved:
    """The base of methods of whole networks, which solve layers by other methods."""

    def prepare(self, data: LayerData, kind: LayerKind) -> NoReturn:
        """Is never called, as the following."""
        raise NotImplementedError

    def solve(self, problem: Any, lanes: Lanes, start: Any = None) -> NoReturn:
        """Is never called."""
        raise NotImplementedError

    def conclude(self, data: LayerData, solved: Any, kind: LayerKind) -> NoReturn:
        """Is never called."""
        raise NotImplementedError

    def cost(self, problem: Any) -> NoReturn:
        """Is never called."""
        raise NotImplementedError


class Chooser(Unsolved):
    """The base of methods that choose whole units, see :class:`Choosing`."""

    statistics: ClassVar[tuple[Statistic, ...]] = ()

    @property
    def shared(self) -> Whole:
        """Chooses units of the whole network."""
        return Whole(type(self).__name__)

    def check(self) -> None:
        """Does nothing: attributes are checked when it is made."""

    def bind(self, kind: LayerKind, cascade: bool) -> Self:
        """The same method, since it fits every layer."""
        return self


class Budgeted(Method, Protocol):
    """A method that shares a :class:`Budget`.

    A search gives each layer a strength: the larger, the fewer weights are left.
    """

    @property
    def power(self) -> int:
        """The output moves at most in proportion to this power of a small strength."""
        ...

    @property
    def alternatives(self) -> tuple["Budgeted", ...]:
        """The ways to prune a layer, bound to it, among which the search chooses."""
        ...

    def strengths(self, tol: float) -> tuple[float, float]:
        """The largest and the least strength to try, at this tolerance of a solver."""
        ...

    def allotted(self, strength: float, kind: LayerKind) -> Method:
        """The same method with the strength of one layer."""
        ...


class Sharing(Method, Protocol):
    """A method that has a :class:`Share` of one number of weights."""

    def counted(self, left: Array, shape: tuple[int, ...]) -> Method:
        """The same method for one layer, of this shape, that keeps so many weights."""
        ...


class Comparing(Sharing, Protocol):
    """A method whose :class:`Share` is not measured: all weights are compared."""

    def score(self, W: Array, stats: Mapping[str, Array]) -> Array:
        """What is lost without each weight, ``[b, d_in, d_out]``, in one unit for all.

        Args:
          W: the trained weights of one site.
          stats: its statistics by name.
        """
        ...


class Choosing(Method, Protocol):
    """A method that chooses whole units of a network."""

    refit: bool  # whether the layers around are fitted afterwards

    def choose(self, units: Any) -> dict[str, np.ndarray]:
        """The units to remove by the names of groups, ``[k]`` or ``[*steps, k]``.

        Args:
          units: what can be asked of the network's units, see ``allocation.units``.
        """
        ...


class Joining(Method, Protocol):
    """A method that prunes the weights of all layers at once."""

    loss: Callable[[Any, Any], Any] | None  # of which there are second derivatives

    def layer(self, W: np.ndarray, steps: int, allowed: np.ndarray) -> Any:
        """One site for :meth:`together`: weights, its layers, what may be left."""
        ...

    def together(
        self, layers: Sequence[Any], others: np.ndarray, H: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """New weights of all layers, and of what else may move, see ``methods.obs``."""
        ...


def is_method(value: Any) -> bool:
    """Whether a value has everything that the engine asks of a method."""
    names = ("check", "bind", "prepare", "solve", "conclude", "cost")
    # names are listed and not read: a property may raise
    given = {"bias", "statistics", "shared"} <= set(dir(value))
    return given and all(callable(getattr(type(value), name, None)) for name in names)


def kind_of(site: Site, method: Method, held: int = 0, fed: bool = False) -> LayerKind:
    """The static facts about a site with a method."""
    b, d_in, d_out = site.index.shape
    return LayerKind(
        shape=(b, d_in, d_out),
        clip=site.clip,
        biased=site.bias is not None and method.bias != "fixed",
        layers=site.layers,
        channels=site.channels,
        held=held,
        fed=fed,
        routed=site.kind == "dense" and b > site.layers,
    )


def held_out(n: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the rows that are held out, and of the others.

    Rows are in random order, and those that do not count are last, so evenly spaced
    positions hold out the same share of the rows that count.
    """
    out = np.arange(held) * n // max(held, 1) + (n // max(held, 1)) // 2
    return out, np.setdiff1d(np.arange(n), out)


def squared_errors(seen: Activation, W: Array, move: Array | None, clip: Clip) -> Array:
    """Squared errors of weights as stored, after the clip, ``[b, n, d_out]``.

    Args:
      seen: the rows.
      W: ``[b, d_in, d_out]``.
      move: the change of the response by the bias, ``[b, d_out]``.
      clip: the limits between which the response passes.

    Returns:
      The squares; zero on rows that do not count.
    """
    answer = matmul(seen.X, W.astype(seen.X.dtype) * seen.scale[:, None, :]) + seen.t
    answer = answer if move is None else answer + move[:, None, :]
    want = seen.P
    xp = numpy_of(want)
    off = clip(answer) - clip(want)
    return xp.where(seen.valid[:, :, None], off**2, 0)


def together(good: Array, layers: int) -> Array:
    """Whether all lanes of each lane's layer are good, as they share a count."""
    return good.reshape(layers, -1).all(1).repeat(len(good) // layers)


def each_layer(function: Callable, given: tuple) -> Any:
    """A function's values for each layer, stacked; arguments have a leading axis."""
    first = jax.tree.leaves(given)[0]
    if all(isinstance(a, np.ndarray) for a in jax.tree.leaves(given)):
        parts = [jax.tree.map(lambda a: a[k], given) for k in range(len(first))]  # noqa: B023
        return np.stack([np.asarray(function(*part)) for part in parts])
    return for_each(function, *given)


def by_layer(a: Array, layers: int) -> Array:
    """Splits lanes ``[b, ...]`` by layer, ``[layers, b / layers, ...]``."""
    return a.reshape(layers, -1, *a.shape[1:])
