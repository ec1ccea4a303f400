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
    "inputs": nt.GroupL1("inputs", np.linspace(0.5, 2, 12)[:, None]),
    "neurons": nt.GroupL1("neurons", np.linspace(0.5, 2, 3)[None, :]),
    "channels": nt.GroupL1("channels", channels=4),
    "blocks": nt.GroupL1((3, 1), np.linspace(0.5, 2, 12).reshape(4, 3)),
    "sparse-inputs": nt.SparseGroup("inputs", 1.0, np.linspace(0, 1, 3)),
    "sparse-neurons": nt.SparseGroup("neurons", 2.0, np.linspace(0, 1, 12)[:, None]),
}
GROUPS = {name: p for name, p in PENALTIES.items() if hasattr(p, "groups")}
# of the response; else 0.2, and for groups 0.4
EPSILON = {"box-that-binds": 0.6} | dict.fromkeys(GROUPS, 0.4)
# a penalised bias is one more input, which makes no whole groups of these
NOT_PENALIZED = ("channels", "blocks")


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
