"""What the user chooses: a method per layer, and how it makes a layer's program.

Knows activations and programs; knows no solver.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax.activations import Activation
from nettrim_jax.penalties import L1, Penalty
from nettrim_jax.programs import BIASES, Program, known, linear_program, relu_program
from nettrim_jax.responses import Match
from nettrim_jax.results import MethodError
from nettrim_jax.typing import ArrayLike, Path


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

    Attributes:
      epsilon: budget relative to the norm of the layer's trained response, a
        non-negative number; it may be traced.
      penalty: what is minimised.
      bias: ``"free"``: a layer's own bias moves without penalty. ``"fixed"``: it
        stays. ``"penalized"``: it moves under the penalty, as in the authors' code.

    Raises:
      MethodError: an attribute is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.NetTrim(epsilon=0.1).bias
      'free'
    """

    epsilon: ArrayLike = 0.1
    penalty: Penalty = L1()
    bias: str = dataclasses.field(default="free", metadata={"static": True})

    def __post_init__(self):
        # also runs whenever JAX rebuilds the record, then with anything as a leaf
        if isinstance(self.epsilon, str):
            raise MethodError(
                f"NetTrim(epsilon={self.epsilon!r}): expected a number such as 0.1"
            )
        if isinstance(self.epsilon, int | float):
            self.check()
        if self.bias not in BIASES:
            raise MethodError(f"NetTrim(bias={self.bias!r}): expected one of {BIASES}")

    def check(self) -> None:
        """Raises MethodError if ``epsilon`` is no finite number of at least zero."""
        if np.shape(self.epsilon) != ():
            raise MethodError(
                f"NetTrim(epsilon): expected one number, got shape "
                f"{list(np.shape(self.epsilon))}; give layers numbers of their own by "
                "a dict from regular expressions to methods"
            )
        if known(self.epsilon) and not 0 <= float(self.epsilon) < float("inf"):
            raise MethodError(
                f"NetTrim(epsilon={float(self.epsilon):g}): expected a finite number "
                "of at least 0, relative to the norm of the layer's response"
            )

    def program(self, seen: Activation, relu: bool, bias: str) -> Program:
        """The program of every lane of a site, stacked.

        Columns are the units' weights times ``seen.scale``, so the penalty of each
        is divided by it; a unit of scale zero costs the least at zero weights.

        Args:
          seen: the site's activation, ``[b, n, ...]``.
          relu: whether a ReLU follows.
          bias: what of ``self.bias`` this site allows.

        Returns:
          The program, with a leading lane axis.
        """
        make = relu_program if relu else linear_program
        epsilon = jnp.asarray(self.epsilon, seen.X.dtype)

        def lane(seen: Activation) -> Program:
            valid = seen.valid[:, None]
            Y = jnp.where(valid, jnp.maximum(seen.P, 0) if relu else seen.P, 0)
            budget = epsilon * jnp.sqrt(jnp.sum(Y**2))
            size = jnp.abs(seen.scale)[None, :]
            penalty = self.penalty.scaled(1 / jnp.where(size > 0, size, 1))
            X = jnp.where(valid, seen.X, 0)
            program = make(X, Y, budget, t=seen.t, penalty=penalty, bias=bias)
            response = program.response
            # a row that does not count is off, and free
            V = jnp.where(valid, response.V, jnp.inf)
            response = Match(Y, response.on & valid, V, response.epsilon)
            return dataclasses.replace(program, response=response)

        return jax.vmap(lane)(seen)


Method = NetTrim


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
            _checked(value, f"method[{pattern!r}]")
        if not any(compiled.search(path) for path in (*paths, *others)):
            raise MethodError(
                f"method: the regular expression {pattern!r} matches no layer; the "
                f"layers are {', '.join(paths)}"
            )
        table.append((pattern, compiled, value))
    chosen: list[Method | None] = []
    reasons = []
    for path in paths:
        hit = next(((p, v) for p, c, v in table if c.search(path)), None)
        chosen.append(hit[1] if hit else None)
        reason = f"method[{hit[0]!r}] is None" if hit else "no pattern of method matches"
        reasons.append(reason)
    return chosen, reasons


def _checked(value: Any, where: str) -> Method:
    if not isinstance(value, Method):
        raise MethodError(
            f"{where}: expected a method such as NetTrim(epsilon=0.1), or a dict from "
            f"regular expressions to methods, got {value!r}"
        )
    value.check()
    return value

