"""Programs of every penalty: three units, twelve inputs, thirty rows."""

import jax
import numpy as np

import nettrim_jax as nt

rng = np.random.default_rng(0)
W0 = rng.normal(size=(12, 3)) * (rng.random((12, 3)) < 0.6)
X, T = rng.normal(size=(30, 12)), 0.3 * rng.normal(size=(30, 3))
# what the trained weights meet, one unit or input apart from the others here and there
PENALTIES = {
    "l1": nt.L1(np.linspace(0.5, 2, 12)[:, None]),
    "box": nt.Box(-3.0, np.linspace(2.5, 3, 3)),
    "box-that-binds": nt.Box(-0.8, 1.2),
    "elastic-net": nt.ElasticNet(np.linspace(0, 2, 12)[:, None]),
    "nonnegative": nt.Nonnegative(),
    "sign": nt.Sign(W0, 0.5),
    "fixed-pattern": nt.FixedPattern(W0, np.linspace(0.5, 2, 3)),
}
EPSILON = {"box-that-binds": 0.6}  # of the response; else 0.2


def program(penalty, relu, bias):
    Y = X @ (np.abs(W0) if penalty == "nonnegative" else W0) + T
    Y = np.maximum(Y, 0) if relu else Y
    make = nt.relu_program if relu else nt.linear_program
    epsilon = EPSILON.get(penalty, 0.2) * np.linalg.norm(Y)
    given = PENALTIES[penalty]
    if bias == "penalized":  # one row more
        given = jax.tree.map(
            lambda a: (
                np.vstack([a, np.ones((1, np.shape(a)[1]))])
                if np.shape(a)[:1] == (12,)
                else a
            ),
            given,
        )
    return make(X, Y, epsilon, t=T, penalty=given, bias=bias)
