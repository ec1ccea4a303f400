"""Every error of ``prune`` says what, where, what was expected; and changes nothing."""

import ast
import re

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

import nettrim_jax as nt
from nettrim_jax.results import (
    ApplyFnError,
    BatchError,
    LayersError,
    MethodError,
    ParamsError,
)

_, PARAMS, APPLY, X, *_ = models.get("square")
LAYERS = "0/w, 1/w, 2/w"
nan, inf = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def nothing_changes():
    """Whatever fails, params and batch are as they were."""
    before = jax.tree.map(np.array, (PARAMS, X))
    leaves = jax.tree.leaves((PARAMS, X))
    yield
    again = jax.tree.leaves((PARAMS, X))
    assert all(a is b for a, b in zip(leaves, again, strict=True))
    for a, b in zip(jax.tree.leaves(before), again, strict=True):
        assert a.tobytes() == np.asarray(b).tobytes()


def fails(error, match, params=PARAMS, apply_fn=APPLY, batch=X, **settings):
    """Asserts that prune raises this, as a NetTrimError; returns the error."""
    with pytest.raises(nt.NetTrimError, match=match) as caught:
        nt.prune(params, apply_fn, batch, **settings)
    assert caught.type is error
    assert isinstance(caught.value, ValueError)
    return caught.value


def changed(path, value):
    """``PARAMS`` with one entry of one leaf changed."""
    layer, name = path.split("/")
    bad = PARAMS[layer][name].at[(0,) * PARAMS[layer][name].ndim].set(value)
    return {**PARAMS, layer: {**PARAMS[layer], name: bad}}


# ---- params


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("path, size", [("1/w", 64), ("2/b", 8)])
def test_params_that_are_not_finite(path, size, value):
    match = f"params: 1 of {size} values of {path} are NaN or infinite; expected finite"
    fails(ParamsError, match, params=changed(path, value))


def test_a_single_array_that_is_not_finite():
    w = models.normal(8, 8).at[1, 1].set(nan)
    match = "params: 1 of 64 values of the array are NaN"
    fails(ParamsError, match, w, lambda w, x: x @ w)


@pytest.mark.parametrize("dtype", ["int32", "int8", "bool", "uint32"])
def test_integer_params(dtype):
    params = jax.tree.map(lambda a: a.astype(dtype), PARAMS)
    match = rf"params: expected a pytree with floating arrays, got \['{dtype}'\]"
    fails(ParamsError, match, params)


@pytest.mark.parametrize("params", [{}, [], None, (), {"a": {}}, 3.0, "params", APPLY])
def test_params_without_arrays(params):
    match = "expected a pytree with floating arrays, got no array at all; pass the"
    fails(ParamsError, match, params)


# ---- the batch


@pytest.mark.parametrize("value", [nan, inf])
def test_a_batch_that_is_not_finite(value):
    bad = X.at[3, 2].set(value).at[4, 2].set(value)
    match = "batch: 2 of 512 values of the array are NaN or infinite; expected finite"
    fails(BatchError, match, batch=bad)
    batch = {"ids": jnp.arange(64), "x": (X, bad)}
    match = "batch: 2 of 512 values of x/1 are NaN or infinite"
    fails(BatchError, match, apply_fn=lambda p, b: APPLY(p, b["x"][1]), batch=batch)


TEXTS = np.array(["one", "two"])


@pytest.mark.parametrize(
    "batch, path, kind",
    [
        ({"x": X, "names": TEXTS}, "names", "<U3"),
        ({"x": X, "names": ["one", "two"]}, "names/0", "str"),
        ({"x": X, "split": b"train"}, "split", "bytes"),
        ({"x": X, "when": TEXTS.astype(object)}, "when", "object"),
        (TEXTS, "the batch", "<U3"),
    ],
)
def test_a_batch_with_text(batch, path, kind):
    match = f"batch: {path} is of type {kind}; expected numbers. Leave out"
    assert "two" not in str(fails(BatchError, match, batch=batch))


def test_a_batch_of_no_rows():
    fails(BatchError, "batch.* no rows.*0/w.* at least one", batch=X[:0])
    match = "batch.* no rows"
    fails(BatchError, match, apply_fn=lambda p, b: APPLY(p, b["x"]), batch={"x": X[:0]})


@pytest.mark.parametrize("shape", [(63,), (8,), (64, 8), (64, 64), (1,)])
def test_weights_of_another_shape(shape):
    match = rf"weights: shape {re.escape(str(list(shape)))} is no prefix .* \[64\]"
    fails(BatchError, match, weights=jnp.ones(shape, jnp.float32))


def test_weights_that_leave_no_row():
    fails(BatchError, "weights.* no row|no rows.*weight", weights=jnp.zeros(64))


@pytest.mark.parametrize("bad", [-1.0, nan, inf])
def test_weights_that_weigh_nothing(bad):
    weights = jnp.ones(64).at[3].set(bad)
    fails(BatchError, "weights: 1 of 64 are negative, NaN or infinite", weights=weights)


def test_weights_that_are_no_array():
    fails(BatchError, "weights: expected an array of numbers, got str", weights="a")


@pytest.mark.parametrize("key", ["a", None, 1.5, True, jnp.zeros(2)], ids=str)
def test_key_that_is_none(key):
    fails(MethodError, "key=.*expected an integer or a PRNG key", key=key)


# ---- the network


@pytest.mark.parametrize("apply_fn", [None, 3, "apply", PARAMS, X], ids=type)
def test_apply_fn_is_no_function(apply_fn):
    kind = type(apply_fn).__name__
    match = rf"expected a function apply_fn\(params, batch\), got {kind}; the order is"
    fails(ApplyFnError, match, apply_fn=apply_fn)


def test_arguments_in_another_order():
    match = r"the order is prune\(params, apply_fn, batch\)"
    fails(ApplyFnError, match, PARAMS, X, APPLY)
    fails(ParamsError, f"got no array at all.*{match}", APPLY, PARAMS)
    fails(ParamsError, "pass the trained parameters, the first", APPLY, PARAMS, X)
    # X is an array and params a batch of shapes, so only the call can fail
    fails(ApplyFnError, "It is called with exactly these two", X, APPLY, PARAMS)


@pytest.mark.parametrize(
    "apply_fn, match",
    [
        (lambda p: p, r"takes 1 positional argument but 2 were given"),
        (lambda p, x, rng: x, r"missing 1 required positional argument: 'rng'"),
        (lambda p, *, x: x, r"takes 1 positional argument but 2"),
        (lambda p, x: 1 / 0, r"ZeroDivisionError: division by zero"),
        (lambda p, x: p["layer"], r"KeyError: 'layer'"),
        (lambda p, x: x if jnp.sum(x) > 0 else -x, r"TracerBoolConversionError"),
        (lambda p, x: np.asarray(x) @ p["0"]["w"], r"TracerArrayConversionError"),
        (lambda p, x: x[:, :5] @ p["0"]["w"], r"TypeError: dot_general requires"),
        (models.MLP(), r"CallCompactUnboundModuleError: Can't call"),
    ],
    ids="few more keyword divides missing-key branches numpy shapes module".split(),
)
def test_apply_fn_fails(apply_fn, match):
    match = (
        r"apply_fn\(params, batch\) failed on a batch of shapes \(64, 8\): "
        rf".*{match}.* exactly these two arguments.*traceable by jax.jit; wrap it"
    )
    error = fails(ApplyFnError, match, apply_fn=apply_fn)
    assert error.__cause__ is not None  # the whole story stays in the traceback


@pytest.mark.parametrize("batch", [X[:, :5], X[:, :, None], X[0, 0]], ids=np.shape)
def test_a_batch_of_another_shape(batch):
    shapes = re.escape(str(batch.shape))
    fails(ApplyFnError, f"failed on a batch of shapes {shapes}: ", batch=batch)


@pytest.mark.parametrize("batch", [(X, X[:, 0]), [X, X]], ids=["labels", "list"])
def test_a_batch_of_several_parts(batch):
    kind = type(batch).__name__
    match = rf"The batch is a {kind} of 2: where a part is labels.*iter\(batches\)"
    fails(ApplyFnError, match, batch=batch)


@pytest.mark.parametrize("batch", [None, "images"])
def test_a_batch_that_is_none(batch):
    fails(ApplyFnError, "failed on a batch of shapes (None|str)", batch=batch)


def test_a_network_without_linear_layers():
    match = "found no linear layer that can be pruned; expected a matrix product"
    params = {"scale": models.normal(8)}
    fails(LayersError, match, params, lambda p, x: x * p["scale"][None, :])
    params = {"table": models.normal(5, 8), "unused": models.normal(3, 4)}
    ids = jnp.zeros(64, "int32")
    error = fails(LayersError, match, params, lambda p, i: p["table"][i], ids)
    assert "table: looked up by index" in str(error)
    assert "unused: apply_fn does not use it" in str(error)


# ---- the method


@pytest.mark.parametrize(
    "epsilon",
    [-0.1, -1, nan, inf, np.float32(-0.5), np.float64(nan), jnp.float32(-1)],
    ids=str,
)
def test_epsilon_out_of_range(epsilon):
    match = (
        rf"NetTrim\(epsilon={float(epsilon):g}(\.0)?\): expected a finite number of at"
    )
    with pytest.raises(MethodError, match=match):  # at once, or at the latest here
        nt.prune(PARAMS, APPLY, X, method=nt.NetTrim(epsilon=epsilon))
    with pytest.raises(MethodError, match=match):
        nt.prune(PARAMS, APPLY, X, method={".*": nt.NetTrim(epsilon=epsilon)})


@pytest.mark.parametrize("epsilon", ["0.1", "small"])
def test_epsilon_is_a_string(epsilon):
    match = rf"NetTrim\(epsilon='{epsilon}'\): expected a number such as 0.1"
    with pytest.raises(MethodError, match=match):
        nt.NetTrim(epsilon=epsilon)


def test_epsilon_is_nothing():
    with pytest.raises(MethodError, match=r"NetTrim\(epsilon.*expected"):
        nt.prune(PARAMS, APPLY, X, method=nt.NetTrim(epsilon=None))


@pytest.mark.parametrize(
    "epsilon", [np.ones(3), jnp.ones(3), [0.1, 0.2, 0.3]], ids=type
)
def test_epsilon_is_one_number(epsilon):
    match = r"NetTrim\(epsilon.*expected one number, got shape \[3\]; .* a dict"
    with pytest.raises(MethodError, match=match):
        nt.prune(PARAMS, APPLY, X, method=nt.NetTrim(epsilon=epsilon))


def test_all_layers_that_do_not_fit_are_named():
    shapes = {"rgb.0": (27, 8), "mid": (8, 6), "odd": (6, 4)}
    params = {path: models.normal(*shape) for path, shape in shapes.items()}

    def apply_fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["rgb.0"]) @ p["mid"]) @ p["odd"]

    given = {"params": params, "apply_fn": apply_fn, "batch": models.data(40, 27)}
    match = "rgb.0: NM.*divide the 27 inputs.*; odd: NM.*divide the 6 inputs"
    error = fails(MethodError, match, **given, method=nt.NM(2, 4))
    # the expression that it proposes does what it says
    proposed = re.search(r"All of these are left out by exclude=(.*)$", str(error))
    exclude = ast.literal_eval(proposed[1])
    pruned = nt.prune(**given, method=nt.Magnitude(nt.NM(2, 4)), exclude=exclude)
    assert [site.path for site in pruned.report.sites] == ["mid"]


def test_settings_of_the_method():
    with pytest.raises(MethodError, match=r"bias='no'\): expected one of \('fixed',"):
        nt.NetTrim(bias="no")
    for rounds in (0, -1, 1.5, "2"):
        with pytest.raises(MethodError, match="expected an integer of at least 1"):
            nt.NetTrim(rounds=rounds)


@pytest.mark.parametrize("penalty", ["l1", 0.1, nt.L1], ids=str)
def test_penalty_of_the_method(penalty):
    with pytest.raises(nt.NetTrimError, match=r"penalty.* such as L1\(\), got"):
        nt.prune(PARAMS, APPLY, X, method=nt.NetTrim(penalty=penalty))


@pytest.mark.parametrize(
    "method", [0.1, "net-trim", nt.NetTrim, [nt.NetTrim()], nt.ADMM(), nt.L1()], ids=str
)
def test_method_of_another_type(method):
    got = re.escape(repr(method))
    match = rf"method: expected a method such as NetTrim\(epsilon=0.1\), .* got {got}"
    fails(MethodError, match, method=method)
    if not isinstance(method, list):
        match = r"method\['1/w'\]: expected a method such as NetTrim\(epsilon=0.1\)"
        fails(MethodError, match, method={"1/w": method, ".*": nt.NetTrim()})


@pytest.mark.parametrize("pattern", ["head", "0/W", "w0", "^w"])
def test_expression_that_matches_nothing(pattern):
    match = (
        rf"the regular expression {re.escape(repr(pattern))} matches no layer; "
        rf"the layers are {LAYERS}"
    )
    for method in (nt.NetTrim(), None):
        fails(MethodError, match, method={"0/w": None, pattern: method})


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "w)"])
def test_expression_that_is_malformed(pattern):
    match = rf"{re.escape(repr(pattern))} is no regular expression \("
    fails(MethodError, match, method={pattern: nt.NetTrim()})


@pytest.mark.parametrize("pattern", [0, None, ("0", "w")])
def test_expression_that_is_no_string(pattern):
    match = rf"{re.escape(repr(pattern))} is no regular expression \("
    fails(MethodError, match, method={pattern: nt.NetTrim()})


# ---- the other settings


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("mode", "serial", r"one of \('parallel'"),
        ("mode", None, r"one of \('parallel'"),
        ("mode", 1, r"one of \('parallel'"),
        ("solver", "admm", r"an ADMM\(\.\.\.\)"),
        ("solver", nt.ADMM, r"an ADMM\(\.\.\.\)"),
        ("solver", nt.NetTrim(), r"an ADMM\(\.\.\.\)"),
        ("rows", 0, "an integer of at least 1"),
        ("rows", -5, "an integer of at least 1"),
        ("rows", 10.5, "an integer of at least 1"),
        ("rows", "all", "an integer of at least 1"),
        ("rows", None, "an integer of at least 1"),
        ("rows", True, "an integer of at least 1"),
        ("held_out", 1.0, r"a share in \[0, 1\)"),
        ("held_out", -0.1, r"a share in \[0, 1\)"),
        ("held_out", 10, r"a share in \[0, 1\)"),
        ("held_out", nan, r"a share in \[0, 1\)"),
        ("held_out", "0.1", r"a share in \[0, 1\)"),
        ("held_out", None, r"a share in \[0, 1\)"),
        ("on_failure", "ignore", r"one of \('raise', 'warn', 'keep'\)"),
        ("on_failure", None, r"one of \('raise', 'warn', 'keep'\)"),
        ("on_failure", True, r"one of \('raise', 'warn', 'keep'\)"),
        ("memory", 0, "a positive number of bytes"),
        ("memory", -1.0, "a positive number of bytes"),
        ("memory", "2GB", "a positive number of bytes"),
    ],
    ids=str,
)
def test_settings(name, value, wanted):
    match = rf"prune\({name}={re.escape(repr(value))}\): expected {wanted}"
    fails(MethodError, match, **{name: value})


@pytest.mark.parametrize("progress", [1, "bar", [print]], ids=str)
def test_progress(progress):
    match = rf"progress={re.escape(repr(progress))}: expected None, True, False or a"
    fails(MethodError, match, progress=progress)


def test_tolerance_beyond_the_dtype():
    match = r"ADMM\(tol=1e-08\) is beyond float32, .* raise tol, or solve in float64"
    fails(MethodError, match, solver=nt.ADMM(tol=1e-8))


def test_an_expression_that_others_hide():
    method = {".*": nt.NetTrim(0.1), "1/w": None}
    fails(
        MethodError,
        r"all layers that '1/w' matches \(1/w\).*first match",
        method=method,
    )
