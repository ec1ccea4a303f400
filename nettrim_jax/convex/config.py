"""The settings of the solver, which are checked where they are made.

Knows numbers; knows no program.
"""

import dataclasses

import numpy as np

from nettrim_jax.results import MethodError


@dataclasses.dataclass(frozen=True)
class ADMM:
    """The settings of the solver and their defaults.

    Attributes:
      tol: largest relative gap and largest relative violation of a converged solve. In
        float32 it is at least 1e-6; on layers with millions of responses rounding
        keeps the gap near 1e-4. A solve that rounding lets come no further ends as
        ``stalled`` within ten times ``tol``, and else as ``rounded``.
      max_steps: most steps, rounded up to a multiple of ``check_every``.
      relaxation: over-relaxation, in (0, 2).
      check_every: steps between two checks of the certificate and the step size.
      imbalance: the step size changes when the relative primal and dual residuals
        differ by more than this factor.
      feasibility: weight of the primal residual in that comparison; a larger one
        lowers the violation, whose price is part of the gap.
      patience: after a change of the step size the next one waits until the number
        of steps has grown by this factor, so that the changes end (without it some
        programs cycle forever).

    Raises:
      MethodError: a setting is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.ADMM(tol=1e-4).tol
      0.0001
    """

    tol: float = 1e-3
    max_steps: int = 20000
    relaxation: float = 1.7
    check_every: int = 20
    imbalance: float = 1.5
    feasibility: float = 2.5
    patience: float = 1.5

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            whole = name in ("max_steps", "check_every")
            number = np.integer | int if whole else np.number | int | float
            if not isinstance(value, number) or isinstance(value, bool):
                raise MethodError(
                    f"ADMM({name}={value!r}): expected "
                    + ("an integer" if whole else "a number")
                )
        for name, good, wanted in (
            ("tol", self.tol > 0, "a positive number"),
            ("max_steps", self.max_steps >= 1, "at least 1"),
            ("relaxation", 0 < self.relaxation < 2, "between 0 and 2"),
            ("check_every", self.check_every >= 1, "at least 1"),
            ("imbalance", self.imbalance > 1, "above 1"),
            ("feasibility", self.feasibility > 0, "a positive number"),
            ("patience", self.patience >= 1, "at least 1"),
        ):
            if not good:
                raise MethodError(
                    f"ADMM({name}={getattr(self, name)!r}): expected {wanted}"
                )
