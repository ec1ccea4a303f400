"""Net-Trim: the convex program of one layer, as a method.

Knows programs, the solver and the protocol of methods; knows no network.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._compile import compiled
from nettrim_jax._numerics import divide
from nettrim_jax._trees import known
from nettrim_jax._values import flag, real, whole
from nettrim_jax.calibration.statistics import Statistic
from nettrim_jax.convex.build import check_weights
from nettrim_jax.convex.entrywise import L1
from nettrim_jax.convex.penalties import Groups, Penalty, is_penalty
from nettrim_jax.convex.programs import BIASES
from nettrim_jax.convex.solution import Solution
from nettrim_jax.methods.base import Answer, Cost, Lanes, LayerData, LayerKind
from nettrim_jax.methods.budget import Budget, Metric, budget_of, check_budget
from nettrim_jax.methods.layer_program import (
    LayerPrograms,
    prepared,
    program_cost,
    refit_lane,
    reweight,
    solve_lanes,
)
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array, ArrayLike


class _Default(float):
    """The default epsilon, which a budget of the whole network replaces."""


DEFAULT = _Default(0.1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class NetTrim:
    r"""Net-Trim: finds sparse weights whose response stays within epsilon.

    .. math::
        \min_W \|W\|_1 \quad\text{s.t.}\quad
        \|(X W + t - Y)_\Omega\|_F \le \epsilon \|Y\|_F, \quad
        (X W + t)_{ij} \le 0 \;\text{off}\; \Omega

    is the program of a layer that a ReLU follows (Aghasi et al., 2017, eq. 4), with
    inputs ``X``, offset ``t``, the trained response ``Y`` after the ReLU, and
    :math:`\Omega` where ``Y`` is positive. For other layers :math:`\Omega` is all
    entries.

    With more ``rounds`` the program is solved again under a penalty that is lower on
    large weights and higher on small ones. Each round is convex and has a certificate,
    and the same budget allows more zeros. (Candès, Wakin and Boyd, 2008.)

    With ``refit`` the weights that are left then take the values whose response is
    nearest to the trained one. This keeps the zeros, removes the shrinkage, and leaves
    an error within the budget, usually about half of it. The certificate is that of the
    program's solution.

    In cascade mode, the program of a layer that pruned layers feed has ``X`` from the
    pruned network, the budget :math:`\sqrt\gamma \, \|(X W_0 + t - Y)_\Omega\|_F` and
    the limit :math:`\max(0, X W_0 + t)` off :math:`\Omega`. The trained weights
    :math:`W_0` meet both. (Aghasi et al., 2017, eq. 6, have the limit :math:`X W_0`;
    where that is negative, this one is wider and allows the same response after the
    ReLU.)

    With ``deviation`` or ``drop`` the budget is that of the whole network, and a search
    gives each layer an epsilon so that the fewest weights are left in all (Shoham and
    Gersho, 1988):

    .. math::
        \min_\epsilon \; \sum_k \|W_k(\epsilon_k)\|_0 \quad\text{s.t.}\quad
        \frac{\|\hat N(x) - N(x)\|_F}{\|N(x)\|_F} \le \text{deviation}
        \quad\text{or}\quad m(N) - m(\hat N) \le \text{drop}

    for the trained network :math:`N`, the pruned one :math:`\hat N` and the metric
    :math:`m`, on rows that no solver sees. ``prune`` splits the batch along its leading
    axis: half to solve on, a quarter to steer the search and a quarter to check the
    result (``report.checked``). In parallel mode with up to 4096 rows, those that solve
    and those that steer change places, and three quarters are solved on. The search
    keeps a margin, estimated from the spread of the rows that steer, which other rows
    exceed one time in a hundred (``report.margin``). It needs concrete values, solves
    each layer about a dozen times and keeps all answers.

    Attributes:
      epsilon: each layer's budget, relative to the norm of its trained response: a
        non-negative number, which may be traced. The default is 0.1, or none with a
        budget for the whole network.
      penalty: the penalty to minimise. If it has limits that the trained weights do not
        meet, there may be no weights within the budget; the result is ``infeasible``.
      bias: ``"free"``: a layer's own bias moves without penalty. ``"fixed"``: it
        stays. ``"penalized"``: it moves under the penalty, as in the authors' code.
      gamma: in cascade mode, the factor by which a layer may increase the squared error
        of its trained weights, at least 1.
      rounds: number of solves, all but the first with a reweighted penalty.
      refit: whether to fit the weights that are left at the end.
      deviation: the largest relative change of the network's output (Frobenius), over
        all that it returns, but for what ``weights`` of :func:`prune` leave out.
      drop: the largest fall of ``metric``, in its own units.
      metric: a function ``metric(params, batch)`` that returns a number, the larger the
        better. It is called on pieces of the batch, which may contain labels, and its
        mean counts. A metric that moves in steps, as an accuracy does, needs many rows.

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
    # the output moves at least in proportion to this power of epsilon
    power: ClassVar[int] = 1
    # whether a layer of a cascade may use all of its epsilon
    entitled: ClassVar[bool] = False

    def __post_init__(self):
        # also runs when JAX rebuilds the record, with values of any type as leaves
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
        if not whole(self.rounds) or self.rounds < 1:
            raise MethodError(
                f"NetTrim(rounds={self.rounds!r}): expected an integer of at least 1"
            )
        if not flag(self.refit):
            raise MethodError(f"NetTrim(refit={self.refit!r}): expected True or False")

    def bind(self, kind: LayerKind, cascade: bool) -> "NetTrim":
        """The same method, where a penalty of groups gets the layer's channels."""
        if not isinstance(self.penalty, Groups):
            return self
        penalty = self.penalty.of_channels(kind.channels)
        return dataclasses.replace(self, penalty=penalty)

    def check(self) -> None:
        """Raises MethodError if an attribute is not valid."""
        if not is_penalty(self.penalty):
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

    @property
    def alternatives(self) -> tuple["NetTrim"]:
        """The ways to prune a layer among which a search may choose: this one."""
        return (self,)

    def strengths(self, tol: float) -> tuple[float, float]:
        """The largest epsilon, at which no weight is needed, and the least to try."""
        return 1.0, max(tol, 1e-4)

    def allotted(self, epsilon: float, kind: LayerKind | None = None) -> "Allotted":
        """The same method with the epsilon that a search gives one layer."""
        return Allotted(
            epsilon=jnp.asarray(epsilon, jnp.float32),
            penalty=self.penalty,
            gamma=self.gamma,
            bias=self.bias,
            rounds=self.rounds,
            refit=self.refit,
        )

    @property
    def shared(self) -> Budget | None:
        """The budget of the whole network; None if each layer has its epsilon."""
        return budget_of("NetTrim", self.deviation, self.drop, self.metric)

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
        check_budget("NetTrim", self.deviation, self.drop, self.metric)

    def _check_numbers(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("gamma", self.gamma)):
            if isinstance(value, list | tuple) and np.shape(value) != ():
                continue  # raised below, with its shape
            budget = self.deviation is not None or self.drop is not None
            if name == "epsilon" and value is None and budget:
                continue
            if not real(value):
                raise MethodError(
                    f"NetTrim({name}={value!r}): expected a number such as 0.1"
                )
        # with a budget of the whole network there is none
        epsilon = 0.0 if self.epsilon is None else self.epsilon
        gamma = self.gamma
        if np.shape(epsilon) != ():
            raise MethodError(
                f"NetTrim(epsilon): expected one number, got shape "
                f"{list(np.shape(epsilon))}; give layers numbers of their own by "
                "a dict from regular expressions to methods"
            )
        if np.shape(gamma) != ():
            raise MethodError(
                "NetTrim(gamma): expected one number, got shape "
                f"{list(np.shape(gamma))}"
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

    def prepare(self, data: LayerData, kind: LayerKind) -> LayerPrograms:
        """The program of each lane, on all rows but those held out."""
        bias = self.bias if kind.biased else "fixed"
        # not used here; other values would only compile again
        kind = kind._replace(layers=1, channels=1)
        return prepared(self, data, bias, kind)

    def solve(
        self, problem: LayerPrograms, lanes: Lanes, start: Any = None
    ) -> "_Solved":
        """Solves the programs in all rounds, and refits the weights if asked to."""
        program, budget = problem
        solve = functools.partial(solve_lanes, lanes=lanes)
        first = solution = solve((program, None if start is None else start.first))
        for _ in range(self.rounds - 1):
            solution = solve((reweight(program, solution), solution))
        if self.refit:
            stack = program, solution.W, solution.bias
            W, bias = lanes.each(refit_lane, stack)
            solution = solution._replace(W=W, bias=bias)
        return _Solved(solution, first, budget)

    def conclude(self, data: LayerData, solved: "_Solved", kind: LayerKind) -> Answer:
        """The last solution, in the units of the params."""
        penalized = kind.biased and self.bias == "penalized"
        return _conclude(data, solved, penalized, kind.of_rows)

    def cost(self, problem: LayerPrograms) -> Cost:
        """The cost of one lane."""
        return program_cost(problem.program)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Allotted(NetTrim):
    """Net-Trim with the epsilon that a search gives one layer."""

    entitled: ClassVar[bool] = True


class _Solved(NamedTuple):
    solution: Solution
    first: Solution  # of the first round; another solve may start from it
    budget: Array  # [b]


@compiled(static_argnames=("penalized", "kind"))
def _conclude(
    data: LayerData, solved: _Solved, penalized: bool, kind: LayerKind
) -> Answer:
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
    # without a row that counts nothing is known of a lane, so it stays as trained
    live = data.live(kind)
    W = divide(solution.W, seen.scale[:, None, :])
    return Answer(W, bias, solution.result, figures, live)
