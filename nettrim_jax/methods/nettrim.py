"""Net-Trim: the convex program of one layer, as a method.

Knows what a method is, programs and the solver; knows no network.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import divide, norm
from nettrim_jax._trees import known
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.convex import admm, least_squares, programs
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.entrywise import L1
from nettrim_jax.convex.penalties import Groups, Penalty
from nettrim_jax.convex.programs import (
    BIASES,
    Program,
    check_shapes,
    check_weights,
    linear_program,
    relu_program,
)
from nettrim_jax.convex.solution import Solution
from nettrim_jax.methods.base import Answer, Cost, Lanes, LayerData, LayerKind
from nettrim_jax.methods.budget import Budget, Metric, check_number
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array, ArrayLike


class _Default(float):
    """An epsilon that nobody gave, which a budget of the network may replace."""


DEFAULT = _Default(0.1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class NetTrim:
    r"""Net-Trim: the sparsest weights whose response stays within epsilon.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad
        \|(X W + t - Y)_\Omega\|_F \le \epsilon \|Y\|_F, \quad
        (X W + t)_{ij} \le 0 \;\text{off}\; \Omega

    for a layer that a ReLU follows, and the ball over all entries for any other.
    (Aghasi et al., 2017, eq. 4.)

    With more rounds the same program is solved again under weights that spare large
    entries and press on small ones; each is convex and certified, and the zeros grow
    at the same budget. (Candès, Wakin and Boyd, 2008.)

    With ``refit`` the weights that are left then take the values whose response is
    nearest to the trained one: the same zeros, no shrinkage, an error still within the
    budget and usually about half of it. The certificate speaks of the program's answer.

    In cascade mode, a layer that pruned ones feed has ``X`` from the pruned network,
    :math:`\epsilon = \sqrt\gamma \, \|(X W_0 + t - Y)_\Omega\|_F` and the limit
    :math:`\max(0, X W_0 + t)` off :math:`\Omega`, which the trained weights
    :math:`W_0` meet. (Aghasi et al., 2017, eq. 6, there with the limit
    :math:`X W_0`; where that is negative this one is wider and keeps the same promise
    after the ReLU.)

    With ``deviation`` or ``drop`` the budget is the whole network's, and each layer
    gets the epsilon that leaves the fewest weights in all (Shoham and Gersho, 1988):

    .. math::
        \min_\epsilon \; \sum_k \|W_k(\epsilon_k)\|_0 \quad\text{s.t.}\quad
        \frac{\|\hat N(x) - N(x)\|_F}{\|N(x)\|_F} \le \text{deviation}
        \quad\text{or}\quad m(N) - m(\hat N) \le \text{drop}

    on rows that no solver sees. ``prune`` then splits the batch along its leading
    axis: half to solve on, a quarter to steer by, a quarter to check on
    (``report.checked``). The search keeps a margin, from how much the parts of the
    steering rows differ, that other rows exceed one time in a hundred. It needs
    concrete values, solves each layer about a dozen times and keeps all answers.

    Attributes:
      epsilon: budget relative to the norm of the layer's trained response, a
        non-negative number; it may be traced. 0.1 unless there is a budget for the
        whole network.
      penalty: what is minimised. Where it has limits that the trained weights do not
        meet, there may be no weights within the budget: ``infeasible``.
      bias: ``"free"``: a layer's own bias moves without penalty. ``"fixed"``: it
        stays. ``"penalized"``: it moves under the penalty, as in the authors' code.
      gamma: in cascade mode, the growth of the squared error that a layer may add,
        at least 1.
      rounds: how often the program is solved, each time but the first reweighted.
      refit: whether the weights that are left are fitted anew at the end.
      deviation: by how much the network's output may move, relative (Frobenius), over
        all that it returns, padding too.
      drop: by how much ``metric`` may fall, in its own units.
      metric: a function ``metric(params, batch)`` that gives a number, larger is
        better. It is called on parts of the batch, where labels can travel, and their
        mean counts; one that moves in steps, as a share of right answers does, needs
        many rows.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.NetTrim(epsilon=0.1).bias
      'free'
      >>> nt.NetTrim(deviation=0.02).epsilon is None  # a search finds one per layer
      True
    """

    epsilon: ArrayLike | None = DEFAULT
    penalty: Penalty = L1()
    gamma: ArrayLike = 1.1
    bias: str = dataclasses.field(default="free", metadata={"static": True})
    rounds: int = dataclasses.field(default=1, metadata={"static": True})
    refit: bool = dataclasses.field(default=False, metadata={"static": True})
    deviation: ArrayLike | None = None
    drop: ArrayLike | None = None
    metric: Metric | None = dataclasses.field(default=None, metadata={"static": True})

    statistics: ClassVar[tuple[Statistic, ...]] = ()
    # whether a layer that has its share of a budget may use it in a cascade
    entitled: ClassVar[bool] = False

    def __post_init__(self):
        # also runs whenever JAX rebuilds the record, then with anything as a leaf
        plain = int | float | str
        given = [a for a in (self.deviation, self.drop) if a is not None]
        if given and isinstance(self.epsilon, _Default):
            object.__setattr__(self, "epsilon", None)  # a search finds it
        numbers = [self.gamma, *given, *([] if given else [self.epsilon])]
        if all(isinstance(number, plain) for number in numbers):
            self._check_numbers()
            self._check_budget()
        if self.bias not in BIASES:
            raise MethodError(f"NetTrim(bias={self.bias!r}): expected one of {BIASES}")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise MethodError(
                f"NetTrim(rounds={self.rounds!r}): expected an integer of at least 1"
            )
        if not isinstance(self.refit, bool):
            raise MethodError(f"NetTrim(refit={self.refit!r}): expected True or False")

    def bind(self, kind: LayerKind, cascade: bool) -> "NetTrim":
        """The same method, whose groups know the layer's channels."""
        if not isinstance(self.penalty, Groups):
            return self
        penalty = self.penalty.of_channels(kind.channels)
        return dataclasses.replace(self, penalty=penalty)

    def check(self) -> None:
        """Raises MethodError if what was asked for is not what it should be."""
        if not isinstance(self.penalty, Penalty):
            raise MethodError(
                "NetTrim(penalty): expected a penalty such as L1(), got "
                f"{self.penalty!r}"
            )
        check_weights(self.penalty)
        limits = self.penalty.box().terms()[:2]
        if self.refit and all(known(limit) for limit in limits):
            lower, upper = (np.asarray(limit) for limit in limits)
            if (np.isfinite(lower) != np.isfinite(upper)).any() or (
                np.isfinite(lower) & (lower != upper)
            ).any():
                raise MethodError(
                    "NetTrim(refit=True): a refit keeps zeros but no other limits, so "
                    f"it would leave those of {type(self.penalty).__name__}; use "
                    "refit=False"
                )
        self._check_numbers()
        self._check_budget()

    def allotted(self, epsilon: float) -> "Allotted":
        """The same method with a layer's share of the budget."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given |= {"deviation": None, "drop": None, "metric": None}
        return Allotted(**given | {"epsilon": jnp.asarray(epsilon, jnp.float32)})

    @property
    def shared(self) -> Budget | None:
        """What the whole network may lose; None if each layer has its epsilon."""
        if self.deviation is None and self.drop is None:
            return None
        name = "drop" if self.deviation is None else "deviation"
        value = getattr(self, name)
        check_number(name, value)
        return Budget(name, float(value), self.metric)

    def _check_budget(self) -> None:
        given = {
            name: getattr(self, name)
            for name in ("epsilon", "deviation", "drop")
            if getattr(self, name) is not None
        }
        if len(given) > 1:
            raise MethodError(
                f"NetTrim: {' and '.join(given)} are given; expected one of them: an "
                "epsilon of every layer, or what the whole network may lose"
            )
        (name, value), *_ = given.items()
        if name == "epsilon":
            if self.metric is not None:
                raise MethodError(
                    "NetTrim(metric): goes with drop, the amount by which it may fall"
                )
            return
        check_number(name, value)
        if (name == "drop") != (self.metric is not None):
            raise MethodError(
                "NetTrim: drop and metric go together: the amount by which "
                "metric(params, batch) may fall; for a deviation there is no metric"
            )
        if self.metric is not None and not callable(self.metric):
            raise MethodError(
                f"NetTrim(metric={self.metric!r}): expected a function "
                "metric(params, batch) that gives a number, larger is better"
            )

    def _check_numbers(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("gamma", self.gamma)):
            if isinstance(value, list | tuple):
                continue  # said below, with its shape
            budget = self.deviation is not None or self.drop is not None
            if name == "epsilon" and value is None and budget:
                continue
            if not isinstance(value, int | float) and not hasattr(value, "dtype"):
                raise MethodError(
                    f"NetTrim({name}={value!r}): expected a number such as 0.1"
                )
        # a budget of the whole network stands in its place
        epsilon = 0.0 if self.epsilon is None else self.epsilon
        gamma = self.gamma
        if np.shape(epsilon) != ():
            raise MethodError(
                f"NetTrim(epsilon): expected one number, got shape "
                f"{list(np.shape(epsilon))}; give layers numbers of their own by "
                "a dict from regular expressions to methods"
            )
        if known(epsilon) and not (np.isfinite(epsilon) and np.asarray(epsilon) >= 0):
            raise MethodError(
                f"NetTrim(epsilon={epsilon}): expected a finite number "
                "of at least 0, relative to the norm of the layer's response"
            )
        if known(gamma) and not (np.isfinite(gamma) and np.asarray(gamma) >= 1):
            raise MethodError(
                f"NetTrim(gamma={gamma}): expected a finite number of at "
                "least 1, or the trained weights would not meet the budget"
            )

    def prepare(self, data: LayerData, kind: LayerKind) -> "_Problem":
        """The program of every lane, on all rows but those held out."""
        bias = self.bias if kind.biased else "fixed"
        # of no matter here, and to be compiled for otherwise
        kind = kind._replace(layers=1, channels=1)
        return _prepare(self, data, bias, kind)

    def solve(self, problem: "_Problem", lanes: Lanes, start: Any = None) -> "_Solved":
        """Solves the programs, again reweighted and at the end refitted as asked."""
        program, budget = problem
        solve = functools.partial(lanes.each, _solve, config=lanes.config)
        first = solution = solve((program, None if start is None else start.first))
        for _ in range(self.rounds - 1):
            solution = solve((_reweight(program, solution), solution))
        if self.refit:
            stack = program, solution.W, solution.bias
            W, bias = lanes.each(_refit, stack)
            solution = solution._replace(W=W, bias=bias)
        return _Solved(solution, first, budget)

    def conclude(self, data: LayerData, solved: "_Solved", kind: LayerKind) -> Answer:
        """The last solution, in the units of the params."""
        penalized = kind.biased and self.bias == "penalized"
        return _conclude(data, solved, penalized, kind.held)

    def cost(self, problem: "_Problem") -> Cost:
        """Of one lane."""
        return program_cost(problem.program)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Allotted(NetTrim):
    """Net-Trim with one layer's share of a budget of the whole network."""

    entitled: ClassVar[bool] = True


class _Problem(NamedTuple):
    program: Program  # with a leading lane axis
    budget: Array  # [b], relative to the norm of the lane's trained response


class _Solved(NamedTuple):
    solution: Solution
    first: Solution  # of the first round, from which another solve may start
    budget: Array  # [b]


def program_cost(program: Program) -> Cost:
    """What the solve of one lane of a stack of programs takes."""
    _, n, d_in = program.X.shape
    d_out = program.response.Y.shape[1]
    small = min(n, d_in)
    arrays = 3 * n * d_in + 12 * n * d_out + 8 * d_in * d_out + 4 * small**2
    return Cost(n * d_in * d_out, arrays * program.X.dtype.itemsize)


def _solve(lane: tuple[Program, Solution | None], config: ADMM) -> Solution:
    return admm.solve(lane[0], config, lane[1])


def _refit(lane: tuple[Program, Array, Array]) -> tuple[Array, Array]:
    return least_squares.refit(*lane)


@jax.jit
def _reweight(program: Program, solution: Solution) -> Program:
    """The next round's program of every lane, from the first and its last answer."""
    return jax.vmap(programs.reweighted)(program, solution.W, solution.bias)


@functools.partial(jax.jit, static_argnames=("bias", "kind"))
def _prepare(method: NetTrim, data: LayerData, bias: str, kind: LayerKind) -> _Problem:
    seen = data.seen
    if bias == "penalized" and data.bias0 is not None:
        # all of it is to be found, so none of it stays in t
        t = seen.t - (data.bias0 * seen.gain)[:, None, :]
        data = data._replace(seen=seen._replace(t=t))
    return programs_of(method, data.to_fit(kind.held), bias, kind)


def programs_of(
    method: NetTrim, seen: Activation, bias: str, kind: LayerKind
) -> _Problem:
    """The program of every lane of a site, stacked.

    Columns are the units' weights times ``seen.scale``, so the penalty is of them
    divided by it; a unit of scale zero costs the least at zero weights.

    Args:
      method: what was asked for.
      seen: the rows to solve on, ``[b, n, ...]``.
      bias: what of ``method.bias`` this site allows.
      kind: whether a ReLU follows, and whether pruned layers feed the site.

    Returns:
      The program, with a leading lane axis, and each lane's budget relative to the
      norm of its trained response.
    """
    relu, make = kind.relu, relu_program if kind.relu else linear_program
    assert method.epsilon is not None, "a search gives every layer its epsilon"
    epsilon = jnp.asarray(method.epsilon, seen.X.dtype)
    gamma = jnp.asarray(method.gamma, seen.X.dtype)

    def lane(seen: Activation) -> _Problem:
        valid = seen.valid[:, None]
        Y = jnp.where(valid, jnp.maximum(seen.P, 0) if relu else seen.P, 0)
        size = norm(Y)
        budget, V = epsilon * size, jnp.zeros((1, 1), Y.dtype)
        if kind.fed and seen.P0 is not None:
            on = valid & (Y > 0) if relu else valid
            off = norm(jnp.where(on, seen.P0 - Y, 0))
            # where all before was kept as trained there is nothing to scale
            moved = off > 8 * jnp.finfo(off.dtype).eps * size
            least = jnp.sqrt(gamma) * off
            least = jnp.maximum(least, budget) if method.entitled else least
            budget = jnp.where(moved, least, budget)
            V = jnp.where(moved, jnp.maximum(seen.P0, 0), 0)
        d_in, d_out = seen.X.shape[1], Y.shape[1]
        scales = jnp.broadcast_to(seen.scale[None, :], (d_in, d_out))
        if bias == "penalized":  # it moves the response by its own gain
            scales = jnp.concatenate([scales, seen.gain[None, :]])
        check_shapes(method.penalty, scales.shape)
        penalty = method.penalty.scaled(1 / jnp.where(scales != 0, scales, 1))
        X = jnp.where(valid, seen.X, 0)
        t = jnp.where(valid, seen.t, 0)
        program = make(X, Y, budget, t=t, penalty=penalty, bias=bias)
        # a row that does not count is off, and free
        V = jnp.where(valid, V, jnp.inf)
        on = program.response.on & valid.T
        response = dataclasses.replace(program.response, on=on, V=V.T)
        program = dataclasses.replace(program, response=response)
        known_size = jnp.where(size > 0, size, 1)
        return _Problem(program, jnp.where(size > 0, budget / known_size, 0))

    return jax.vmap(lane)(seen)


@functools.partial(jax.jit, static_argnames=("penalized", "held"))
def _conclude(data: LayerData, solved: _Solved, penalized: bool, held: int) -> Answer:
    seen, solution = data.seen, solved.solution
    bias, certificate = None, solution.certificate
    if data.bias0 is not None:
        move = divide(solution.bias, seen.gain)
        bias = move if penalized else data.bias0 + move
    figures = {
        "epsilon": solved.budget,
        "steps": solution.stats.steps,
        "gap": certificate.gap,
        "violation": certificate.violation,
    }
    # without a row that counted nothing is known of the weights: they stay
    live = jnp.any(data.to_fit(held).valid, axis=1)
    W = divide(solution.W, seen.scale[:, None, :])
    return Answer(W, bias, solution.result, figures, live)
