"""What the user chooses: a method per layer, and how it makes a layer's program.

Knows activations and programs; knows no solver.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation.budget import Budget, Metric
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.convex.entrywise import L1
from nettrim_jax.convex.penalties import Groups, Penalty
from nettrim_jax.convex.programs import (
    BIASES,
    Program,
    check_shapes,
    check_weights,
    known,
    linear_program,
    relu_program,
)
from nettrim_jax.convex.projection import norm
from nettrim_jax.methods.patterns import Pattern
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.methods.rules import Rule
from nettrim_jax.results import MethodError
from nettrim_jax.typing import Array, ArrayLike, Path

# of its own identity, so that 0.1 can be told from nothing given
DEFAULT = float("0.1")


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

    moments: ClassVar[bool] = False  # whether it needs those of all rows

    def __post_init__(self):
        # also runs whenever JAX rebuilds the record, then with anything as a leaf
        plain = int | float | str
        given = [a for a in (self.deviation, self.drop) if a is not None]
        if given and self.epsilon is DEFAULT:
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

    def fits(self, shape: tuple[int, ...]) -> None:
        """Fits every layer."""

    def of_channels(self, channels: int) -> "NetTrim":
        """The same method for a layer whose inputs come from so many channels."""
        if not isinstance(self.penalty, Groups):
            return self
        return dataclasses.replace(self, penalty=self.penalty.of_channels(channels))

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

    @property
    def budget(self) -> Budget | None:
        """What the whole network may lose; None if each layer has its epsilon."""
        if self.deviation is None and self.drop is None:
            return None
        name = "drop" if self.deviation is None else "deviation"
        value = getattr(self, name)
        budgets.check_number(name, value)
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
        budgets.check_number(name, value)
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

    def program(
        self, seen: Activation, relu: bool, bias: str, fed: bool
    ) -> tuple[Program, Array]:
        """The program of every lane of a site, stacked.

        Columns are the units' weights times ``seen.scale``, so the penalty is of them
        divided by it; a unit of scale zero costs the least at zero weights.

        Args:
          seen: the site's activation, ``[b, n, ...]``.
          relu: whether a ReLU follows.
          bias: what of ``self.bias`` this site allows.
          fed: whether layers that are pruned already feed it.

        Returns:
          The program, with a leading lane axis, and each lane's budget relative to
          the norm of its trained response, ``[b]``.
        """
        make = relu_program if relu else linear_program
        assert self.epsilon is not None, "a search gives every layer its epsilon"
        lifted = self.deviation is not None
        epsilon = jnp.asarray(self.epsilon, seen.X.dtype)
        gamma = jnp.asarray(self.gamma, seen.X.dtype)

        def lane(seen: Activation) -> tuple[Program, Array]:
            valid = seen.valid[:, None]
            Y = jnp.where(valid, jnp.maximum(seen.P, 0) if relu else seen.P, 0)
            size = norm(Y)
            budget, V = epsilon * size, jnp.zeros((1, 1), Y.dtype)
            if fed and seen.P0 is not None:
                on = valid & (Y > 0) if relu else valid
                off = norm(jnp.where(on, seen.P0 - Y, 0))
                # where all before was kept as trained there is nothing to scale
                moved = off > 8 * jnp.finfo(off.dtype).eps * size
                least = jnp.sqrt(gamma) * off
                # a layer that has its share of a budget may use it
                least = jnp.maximum(least, budget) if lifted else least
                budget = jnp.where(moved, least, budget)
                V = jnp.where(moved, jnp.maximum(seen.P0, 0), 0)
            d_in, d_out = seen.X.shape[1], Y.shape[1]
            scales = jnp.broadcast_to(seen.scale[None, :], (d_in, d_out))
            if bias == "penalized":  # it moves the response by its own gain
                scales = jnp.concatenate([scales, seen.gain[None, :]])
            check_shapes(self.penalty, scales.shape)
            penalty = self.penalty.scaled(1 / jnp.where(scales != 0, scales, 1))
            X = jnp.where(valid, seen.X, 0)
            t = jnp.where(valid, seen.t, 0)
            program = make(X, Y, budget, t=t, penalty=penalty, bias=bias)
            # a row that does not count is off, and free
            V = jnp.where(valid, V, jnp.inf)
            on = program.response.on & valid.T
            response = dataclasses.replace(program.response, on=on, V=V.T)
            program = dataclasses.replace(program, response=response)
            known_size = jnp.where(size > 0, size, 1)
            return program, jnp.where(size > 0, budget / known_size, 0)

        return jax.vmap(lane)(seen)


Method = NetTrim | Rule | Reconstruct
Asked = Method | Pattern  # what a user may give: a pattern means Reconstruct


def assign(
    method: Any, paths: Sequence[Path], others: Sequence[Path]
) -> tuple[list[Method | None], list[str]]:
    """The method of every site, by ``re.search`` on its path, first match wins.

    Args:
      method: one method, or a mapping from regular expressions to a method or None.
      paths: the sites' paths.
      others: paths that cannot be pruned; a pattern may match them for nothing.

    Returns:
      A method or None per site, and why where it is None.

    Raises:
      MethodError: a value is no method, or a pattern is wrong or matches nothing.
    """
    if not isinstance(method, Mapping):
        return [_checked(method, "method")] * len(paths), [""] * len(paths)
    table = []
    for pattern, value in method.items():
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise MethodError(
                f"method: {pattern!r} is no regular expression ({error})"
            ) from None
        if value is not None:
            value = _checked(value, f"method[{pattern!r}]")
        if not any(compiled.search(path) for path in (*paths, *others)):
            raise MethodError(
                f"method: the regular expression {pattern!r} matches no layer; the "
                f"layers are {', '.join(paths)}"
            )
        table.append((pattern, compiled, value))
    first = [
        next((i for i, (_, c, _) in enumerate(table) if c.search(path)), None)
        for path in paths
    ]
    for i, (pattern, compiled, _) in enumerate(table):
        hits = [path for path in paths if compiled.search(path)]
        if hits and i not in first:
            raise MethodError(
                f"method: all layers that {pattern!r} matches ({', '.join(hits)}) are "
                "matched by expressions before it, and the first match wins; put it "
                "before them or leave it out"
            )
    chosen: list[Method | None] = []
    reasons = []
    for i in first:
        pattern, _, value = (None, None, None) if i is None else table[i]
        chosen.append(value)
        unmatched = "no pattern of method matches"
        reasons.append(unmatched if i is None else f"method[{pattern!r}] is None")
    return chosen, reasons


def _checked(value: Any, where: str) -> Method:
    value = Reconstruct(value) if isinstance(value, Pattern) else value
    if not isinstance(value, Method):
        raise MethodError(
            f"{where}: expected a method such as NetTrim(epsilon=0.1), a pattern such "
            "as Sparsity(0.9), or a dict from regular expressions to these, got "
            f"{value!r}"
        )
    value.check()
    return value
