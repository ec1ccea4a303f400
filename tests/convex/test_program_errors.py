"""Every error of the programs and of the solver's settings says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nettrim_jax as nt
from nettrim_jax.results import MESSAGES, MethodError, ProgramError

X, Y = np.ones((5, 3)), np.ones((5, 2))

makers = pytest.mark.parametrize("make", [nt.relu_program, nt.linear_program])


@makers
@pytest.mark.parametrize(
    "X, Y",
    [
        (X[0], Y),
        (X, Y[:, 0]),
        (X[None], Y),
        (X[:4], Y),
        (X[:0], Y[:0]),
        (X[:, :0], Y),
    ],
    ids=["X-vector", "Y-vector", "X-stack", "rows-differ", "no-rows", "no-inputs"],
)
def test_shapes(make, X, Y):
    # the message shows both shapes as they came
    shapes = rf"got X \{list(X.shape)} and Y \{list(Y.shape)}".replace("]", r"\]")
    with pytest.raises(ProgramError, match=r"X \[n, d_in\] and Y \[n, d_out\]"):
        make(X, Y, 0.1)
    with pytest.raises(ProgramError, match=shapes):
        make(X, Y, 0.1)


@makers
@pytest.mark.parametrize("dtype", ["int32", "bool", "bfloat16", "float16"])
def test_dtype(make, dtype):
    with pytest.raises(ProgramError, match=f"got {dtype}; cast it with X.astype"):
        make(jnp.asarray(X).astype(dtype), Y, 0.1)


@makers
def test_bias(make):
    with pytest.raises(ProgramError, match=r"bias='no'; expected one of \('fixed'"):
        make(X, Y, 0.1, bias="no")


@makers
def test_epsilon_is_one_number(make):
    with pytest.raises(ProgramError, match=r"scalar epsilon, got shape \[3\].*vmap"):
        make(X, Y, np.ones(3))


@makers
def test_epsilon_is_not_negative(make):
    with pytest.raises(ProgramError, match="epsilon=-0.5; expected a number of at"):
        make(X, Y, -0.5)


@makers
@pytest.mark.parametrize("penalty", ["l1", 1.0, nt.L1])
def test_penalty(make, penalty):
    kind = type(penalty).__name__
    with pytest.raises(ProgramError, match=rf"penalty such as L1\(\), got {kind}"):
        make(X, Y, 0.1, penalty=penalty)


@makers
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["X", "Y", "t", "epsilon"])
def test_not_finite(make, where, bad):
    data = {"X": X.copy(), "Y": Y.copy(), "t": 0 * Y, "epsilon": np.array(0.1)}
    data[where].flat[0] = bad
    with pytest.raises(ProgramError, match=f"{where} holds NaN or infinity; remove"):
        make(**data)


@makers
@pytest.mark.parametrize("shape", [(5,), (2, 2), (1, 5, 2)])
def test_t_broadcasts(make, shape):
    with pytest.raises(ProgramError, match=r"expected t that broadcasts to Y \[5, 2\]"):
        make(X, Y, 0.1, t=np.ones(shape))


def test_V_broadcasts():
    with pytest.raises(ProgramError, match=r"expected V .* Y \[5, 2\], got \[4, 2\]"):
        nt.relu_program(X, Y, 0.1, V=np.ones((4, 2)))


@pytest.mark.parametrize(
    "setting, wanted",
    [
        ({"tol": 0.0}, r"ADMM\(tol=0.0\): expected a positive number"),
        ({"tol": float("nan")}, r"ADMM\(tol=nan\): expected a positive number"),
        ({"max_steps": 0}, r"ADMM\(max_steps=0\): expected at least 1"),
        ({"relaxation": 0.0}, r"ADMM\(relaxation=0.0\): expected between 0 and 2"),
        ({"relaxation": 2.0}, r"ADMM\(relaxation=2.0\): expected between 0 and 2"),
        ({"check_every": 0}, r"ADMM\(check_every=0\): expected at least 1"),
        ({"max_steps": True}, r"ADMM\(max_steps=True\): expected an integer"),
        ({"imbalance": 1.0}, r"ADMM\(imbalance=1.0\): expected above 1"),
        ({"patience": 0.5}, r"ADMM\(patience=0.5\): expected at least 1"),
    ],
    ids=str,
)
def test_settings(setting, wanted):
    with pytest.raises(MethodError, match=wanted):
        nt.ADMM(**setting)


@pytest.mark.parametrize("solver", [1e-3, "admm", nt.ADMM], ids=str)
def test_solver_is_an_admm(solver):
    kind = type(solver).__name__
    with pytest.raises(
        MethodError, match=rf"expected an ADMM\(...\), got {kind}; give"
    ):
        nt.solve(nt.relu_program(X, Y, 0.1), solver)


@pytest.mark.parametrize("dtype, tol", [("float32", 1e-7), ("float64", 1e-15)])
def test_tolerance_is_within_the_dtype(dtype, tol):
    program = nt.relu_program(X.astype(dtype), Y, 0.1)
    with pytest.raises(MethodError, match=rf"\(tol={tol:g}\) is beyond {dtype}.*raise"):
        nt.solve(program, nt.ADMM(tol=tol))


def test_results_have_messages():
    for code, text in MESSAGES.items():
        assert nt.results.message(jnp.asarray(code)) == text
    with pytest.raises(nt.NetTrimError, match=r"result code 9 is unknown; the codes"):
        nt.results.message(9)


def test_every_error_is_a_net_trim_error_and_a_value_error():
    assert issubclass(ProgramError, nt.NetTrimError)
    assert issubclass(MethodError, nt.NetTrimError)
    assert issubclass(nt.NetTrimError, ValueError)


def test_numbers_of_numpy_are_numbers():
    config = nt.ADMM(tol=np.float32(1e-3), max_steps=np.int64(100))
    assert {config: 1}[config] == 1


def test_programs_come_one_by_one(rng):
    X, Y = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 9, 2))
    stack = jax.vmap(lambda X, Y: nt.linear_program(X, Y, 0.1))(X, Y)
    for call, name in ((nt.solve, "solve"), (nt.history, "history")):
        says = rf"^{name}: .* stack with X \[2, 9, 3\].*jax.vmap\(nettrim_jax.{name}\)"
        with pytest.raises(ProgramError, match=says):
            call(stack)
        with pytest.raises(ProgramError, match=rf"^{name}: expected a program, got s"):
            call("program")
