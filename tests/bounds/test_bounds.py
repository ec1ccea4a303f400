"""Bounds hold: of operators, of every rule, of networks; or they stop and say so."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.bounds import products, spectral
from nettrim_jax.bounds.lipschitz import RULES, Ball, Rules
from nettrim_jax.tracing import jaxprs

# ---- operators

SHAPES = [(1, 1), (7, 3), (3, 40), (30, 30), (200, 60)]


KINDS = ["normal", "complex", "rank-one", "nonnegative"]


@pytest.mark.parametrize("shape", only_fast(SHAPES[1:2], SHAPES))
@pytest.mark.parametrize("kind", only_fast(KINDS[1:2], KINDS))
def test_norm_of_a_matrix(kind, shape, rng):
    A = rng.normal(size=shape)
    if kind == "complex":
        A = A + 1j * rng.normal(size=shape)
    if kind == "rank-one":
        A = A[:, :1] * A[:1]
    if kind == "nonnegative":
        A = np.abs(A)
    exact = np.linalg.norm(A, 2)
    found = float(spectral.matrix_norm(jnp.asarray(A)))
    assert exact <= found * (1 + 1e-12) and found <= 1.02 * exact
    low = A.astype("complex64" if kind == "complex" else "float32")
    assert exact <= float(spectral.matrix_norm(jnp.asarray(low))) * (1 + 1e-6)


@slow
def test_norm_of_nothing():
    zero = jnp.zeros((2, 3, 4))
    assert not spectral.matrix_norm(zero).any()
    assert not jax.grad(lambda A: spectral.matrix_norm(A).sum())(zero).any()
    assert not spectral.matrix_norm(jnp.zeros((2, 0, 4))).any()


CONVOLUTIONS = {  # kernel, size, stride, dilation, spread, padding; within this factor
    "plain": (3, 9, 1, 1, 1, (1, 1), 1.05),
    "strided": (3, 9, 2, 1, 1, (1, 1), 1.1),
    "patches": (4, 16, 4, 1, 1, (0, 0), 1.001),
    "dilated": (3, 12, 1, 2, 1, (2, 2), 1.2),
    "transposed": (4, 6, 1, 1, 2, (2, 2), 1.1),
    "cut": (3, 9, 1, 1, 1, (-1, -2), 1.1),
    "both": (3, 6, 2, 1, 2, (1, 1), 6.0),
    "one": (1, 6, 1, 1, 1, (0, 0), 1.001),
    "as-large-as-the-image": (5, 5, 1, 1, 1, (0, 0), 3.0),
}


@slow
@pytest.mark.parametrize("groups", only_fast([2], [1, 2]))
@pytest.mark.parametrize("name", only_fast(["strided"], CONVOLUTIONS))
def test_norm_of_a_convolution(name, groups, rng):
    length, size, stride, dilation, spread, padding, factor = CONVOLUTIONS[name]
    kernel = jnp.asarray(rng.normal(size=(length, length, 4 // groups, 6)))

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            (padding, padding),
            (spread, spread),
            (dilation, dilation),
            ("NHWC", "HWIO", "NHWC"),
            groups,
        )

    x = jnp.zeros((1, size, size, 4))
    (op,) = jaxprs.flatten(jax.make_jaxpr(convolve)(x))[0].block.ops
    found = float(Rules(jnp.float64).linear_norm(op, 0, x, kernel))
    matrix = np.asarray(jax.jacobian(convolve)(x)).reshape(-1, x.size)
    exact = np.linalg.norm(matrix, 2)
    assert exact <= found * (1 + 1e-12) and found <= factor * exact
    rules = Rules(jnp.float64, products.frobenius)
    assert exact <= float(rules.linear_norm(op, 0, x, kernel)) * (1 + 1e-12)


# ---- rules: what an operation makes of every point of a ball

_W = np.random.default_rng(3).normal(size=(2, 4, 3))
_AT = np.array([[0, 2], [1, 1], [3, 0]])


def _pool(f, start):
    return lambda x: jax.lax.reduce_window(x, start, f, (3, 2), (2, 1), "SAME")


def _conv(x):
    kernel = jnp.asarray(_W.reshape(2, 2, 2, 3)).transpose(3, 2, 0, 1)[:, :1]
    return jax.lax.conv(x[None, None], kernel, (2, 1), "SAME")


ONE = {
    "relu": lambda x: jnp.maximum(x, 0),
    "min": lambda x: jnp.minimum(x, 0.3),
    "clamp": lambda x: jax.lax.clamp(jnp.full((), -0.5), x, jnp.full((), 0.4)),
    "abs": jnp.abs,
    "neg": lambda x: -x,
    "tanh": jnp.tanh,
    "logistic": jax.lax.logistic,
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "atan": lambda x: jax.lax.atan(x),
    "asinh": lambda x: jax.lax.asinh(x),
    "sin": jnp.sin,
    "cos": jnp.cos,
    "exp": jnp.exp,
    "exp2": lambda x: jax.lax.exp2(x),
    "expm1": jnp.expm1,
    "log": lambda x: jnp.log(jnp.exp(x)),
    "log1p": lambda x: jnp.log1p(x + 2),
    "sqrt": lambda x: jnp.sqrt(x + 3),
    "rsqrt": lambda x: jax.lax.rsqrt(x + 3),
    "square": lambda x: jax.lax.square(x),
    "cube": lambda x: jax.lax.integer_pow(x, 3),
    "reciprocal": lambda x: jax.lax.integer_pow(x + 3, -2),
    "reshape": lambda x: x.reshape(2, 8),
    "transpose": lambda x: x.T,
    "slice": lambda x: x[1:, ::2],
    "squeeze": lambda x: jnp.squeeze(x[:1], 0),
    "rev": lambda x: jnp.flip(x, 0),
    "expand": lambda x: jax.lax.expand_dims(x, (1,)),
    "pad": lambda x: jnp.pad(x, ((1, 0), (0, 2)), constant_values=2.0),
    "concatenate": lambda x: jnp.concatenate([x, jnp.ones((1, 4))]),
    "copy": lambda x: jnp.array(x, copy=True),
    "named": lambda x: jax.ad_checkpoint.checkpoint_name(x, "x"),
    "dynamic-slice": lambda x: jax.lax.dynamic_slice(x, (1, 0), (2, 3)),
    "update": lambda x: jax.lax.dynamic_update_slice(x, jnp.ones((2, 2)), (1, 1)),
    "split": lambda x: jnp.split(x, 2)[1],
    "select": lambda x: jnp.where(jnp.asarray(_W[0, :, :1] > 0), x, 2.0),
    "cast": lambda x: x.astype("float32"),
    "barrier": lambda x: jax.lax.optimization_barrier((x, jnp.ones(2)))[0],
    "add": lambda x: x + 1,
    "sub": lambda x: 1 - x,
    "broadcast": lambda x: jnp.broadcast_to(x[None], (3, 4, 4)),
    "sum": lambda x: x.sum(0),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "gather": lambda x: x[jnp.asarray(_AT[:, 0]), jnp.asarray(_AT[:, 1])] + x[0, 0],
    "take": lambda x: jnp.take(x, jnp.asarray([0, 0, 1]), axis=1),
    "repeated": lambda x: jnp.asarray(_W.reshape(4, 6)[:, :4]) * x[:1],
    "max": lambda x: x.max(1),
    "least": lambda x: x.min(),
    "cummax": lambda x: jax.lax.cummax(x, 1),
    "cummin": lambda x: jax.lax.cummin(x, 0, True),
    "max-pool": _pool(jax.lax.max, -jnp.inf),
    "min-pool": _pool(jax.lax.min, jnp.inf),
    "mean-pool": _pool(jax.lax.add, 0.0),
    "mul": lambda x: x * jnp.asarray(_W.reshape(4, 6)[:, :4]),
    "div": lambda x: x / jnp.asarray(_W.reshape(4, 6)[:, :4]),
    "over": lambda x: 1 / (x + 3),
    "matmul": lambda x: x @ jnp.asarray(_W[0]),
    "matmul-left": lambda x: jnp.asarray(_W[0]).T @ x,
    "lanes": lambda x: jnp.einsum("nbc,bcd->nbd", x.reshape(2, 2, 4), jnp.asarray(_W)),
    "conv": _conv,
    "softmax": lambda x: jax.nn.softmax(x),
    "gelu": lambda x: jax.nn.gelu(x),
}
TWO = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - y,
    "repeated": lambda x, y: x + y[:, :1],
    "sum-of-any": lambda x, y: (
        jax.interpreters.ad.add_jaxvals_p.bind(x, y)
        if hasattr(jax.interpreters.ad, "add_jaxvals_p")
        else x + y
    ),
    "maximum": lambda x, y: jnp.maximum(x, y),
    "minimum": lambda x, y: jnp.minimum(x, y),
    "product": lambda x, y: x * y,
    "ratio": lambda x, y: x / (y + 3),
    "matmul": lambda x, y: x @ y,
    "joined": lambda x, y: jnp.concatenate([x, y], 1),
    "chosen": lambda x, y: jnp.where(jnp.asarray(_W[0, :, :1] > 0), x, y),
    "updated": lambda x, y: jax.lax.dynamic_update_slice(x, y[:2], (1, 0)),
}
CASES = {f"{n}-of-one": (f, 1) for n, f in ONE.items()}
CASES |= {f"{n}-of-two": (f, 2) for n, f in TWO.items()}
QUICK = ["relu-of-one", "exp-of-one", "max-pool-of-one"]


def walk(function, balls):
    """What the rules make of balls, and the primitives on the way."""
    closed = jax.make_jaxpr(function)(*[ball.k for ball in balls])
    flat, consts = jaxprs.flatten(closed)
    env = dict(zip(flat.consts, consts, strict=True))
    env |= dict(zip(flat.block.inputs, balls, strict=True))
    rules, names = Rules(jnp.float64), set()
    for op in flat.block.ops:
        args = [r.value if isinstance(r, jaxprs.Literal) else env[r] for r in op.inputs]
        if any(isinstance(a, Ball) for a in args):
            names.add(op.name)
            outputs = rules.apply(op, args)
            assert outputs is not None, op.name
        else:
            outputs = jaxprs.apply(op, *args)
        env.update(zip(op.outputs, outputs, strict=True))
    return env[flat.block.outputs[0]], names


@pytest.mark.parametrize("name", only_fast(QUICK, CASES))
def test_rule_holds_what_it_says(name, rng):
    function, count = CASES[name]
    ks = [rng.normal(size=(4, 4)) for _ in range(count)]
    for size in (0.02, 0.3):
        ways = [rng.normal(size=(4, 4)) for _ in range(12 * count)]
        ways += [np.eye(16)[i].reshape(4, 4) for i in (0, 5, 15) for _ in range(count)]
        ways += [np.sign(k) for k in ks] + [-np.sign(k) for k in ks]
        answers = jax.vmap(function)
        middle = np.asarray(function(*map(jnp.asarray, ks)))
        # Frobenius: points of the sphere
        out, _ = walk(function, [Ball(jnp.asarray(k), jnp.full((), size)) for k in ks])
        on = [
            np.stack([size * w / np.linalg.norm(w) for w in ways[i::count]])
            for i in range(count)
        ]
        far = (
            np.asarray(answers(*[k + d for k, d in zip(ks, on, strict=True)])) - middle
        )
        norms = np.linalg.norm(far.reshape(len(far), -1), axis=1)
        assert norms.max() <= float(out.e) * (1 + 1e-6) + 1e-7
        # entry by entry: corners of the box
        Es = [size * rng.random((4, 4)) for _ in ks]
        balls = [
            Ball(jnp.asarray(k), jnp.full((), np.linalg.norm(E)), jnp.asarray(E))
            for k, E in zip(ks, Es, strict=True)
        ]
        out, _ = walk(function, balls)
        at = [
            np.stack([np.sign(w) * E for w in ways[i::count]]) for i, E in enumerate(Es)
        ]
        far = np.abs(
            np.asarray(answers(*[k + d for k, d in zip(ks, at, strict=True)])) - middle
        )
        assert (far <= np.asarray(out.E)[None] * (1 + 1e-6) + 1e-7).all()
        norms = np.linalg.norm(far.reshape(len(far), -1), axis=1)
        assert norms.max() <= float(out.e) * (1 + 1e-6) + 1e-7


@slow
def test_every_rule_is_tested():
    seen = set()
    for function, count in CASES.values():
        balls = [Ball(jnp.ones((4, 4)), jnp.full((), 0.1)) for _ in range(count)]
        seen |= walk(function, balls)[1]
    # names that some versions of JAX give to what others call copy, reshape or mul
    assert set(RULES) - seen <= {"copy", "copy_p", "expand_dims", "square", "add_any"}


# ---- whole networks

# where a layer is fed what no rule is known of
STOPS = {
    "bfloat16": "dot_general",
    "linen-bfloat16": "dot_general",
}
NETTRIM = [nt.NetTrim(epsilon=e) for e in (0.02, 0.1, 0.4)]


def holds(report):
    """The measured deviation is within all bounds, but for rounding."""
    moved, tight, bound, frobenius = (
        float(a)
        for a in (
            report.deviation,
            report.tight_bound,
            report.bound,
            report.frobenius_bound,
        )
    )
    assert moved <= tight * (1 + 1e-4) + 1e-7
    assert tight <= bound
    assert bound <= frobenius * (1 + 1e-5)


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("name", only_fast([], models.MODELS))
def test_deviation_is_within_the_bounds(name, mode):
    m = models.get(name)
    for method in [*NETTRIM, nt.Magnitude(nt.Sparsity(0.7))]:
        report = nt.prune(
            m.params,
            m.apply_fn,
            m.batch,
            method=method,
            mode=mode,
            bound=True,
            on_failure="keep",
        ).report
        if report.bound_stop:
            assert np.isnan(report.bound) and np.isnan(report.tight_bound)
            assert np.isnan(report.frobenius_bound)
            assert report.bound_stop.split(",")[0] == STOPS.get(name)
            assert f"stops at {report.bound_stop}"[:60] in str(report)
        else:
            assert name not in STOPS
            holds(report)


def test_bound_of_one_network():
    m = models.get("square")
    report = nt.prune(m.params, m.apply_fn, m.batch, bound=True).report
    holds(report)
    data = report.to_dict()
    assert data["bound"] == float(report.bound) and data["bound_stop"] == ""
    (line,) = [line for line in str(report).splitlines() if "theorems" in line]
    assert f"{float(report.bound):.4g}" in line and len(line) <= 100


def test_bound_that_was_not_asked_for():
    m = models.get("square")
    report = nt.prune(m.params, m.apply_fn, m.batch).report
    assert np.isnan(report.bound) and report.bound_stop is None
    assert "bound" not in str(report) and report.to_dict()["bound"] is None


def stops(apply_fn, *shapes):
    """Where the bound of a network with these matrices stops."""
    params = {f"w{i}": models.normal(*shape) for i, shape in enumerate(shapes)}
    x = models.data(16, shapes[0][0])
    method = nt.Magnitude(nt.Sparsity(0.5))
    return nt.prune(params, apply_fn, x, method=method, bound=True).report.bound_stop


def test_bound_stops_where_no_constant_is_known():
    def apply_fn(p, x):
        return jnp.sort(jax.nn.relu(x @ p["w0"]) @ p["w1"], axis=1)

    assert stops(apply_fn, (8, 8), (8, 8)) == "sort, after w1"


def test_bound_behind_operands_with_an_axis_of_length_one():
    """Newer versions of JAX clip between ``[1, d]`` without repeating it."""
    params = {f"w{i}": models.normal(8, 8) for i in range(2)}
    low = jnp.linspace(-1, 0, 8, dtype="float32")[None, :]

    def apply_fn(p, x):
        z = jax.nn.relu(x @ p["w0"]) @ p["w1"]
        return jnp.clip(z, low, low + 1)

    x, method = models.data(64, 8), nt.Magnitude(nt.Sparsity(0.5))
    holds(nt.prune(params, apply_fn, x, method=method, bound=True).report)


@slow
def test_what_stops_in_vain_does_not_count():
    def apply_fn(p, x):
        z = jax.nn.relu(x @ p["w0"]) @ p["w1"]
        return z, jnp.argmax(jnp.sort(z, axis=1), axis=1)

    assert stops(apply_fn, (8, 8), (8, 8)) == ""


@slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_bounds_are_pure(mode):
    m = models.get("square")

    def bound(epsilon, scale):
        params = jax.tree.map(lambda a: a * scale, m.params)
        method = nt.NetTrim(epsilon=epsilon)
        report = nt.prune(
            params, m.apply_fn, m.batch, method=method, mode=mode, bound=True
        ).report
        return report.bound, report.tight_bound

    epsilons = jnp.asarray([0.05, 0.2], "float32")
    one = jnp.ones((), "float32")
    mapped = jax.jit(jax.vmap(bound, (0, None)))(epsilons, one)
    for i, epsilon in enumerate(epsilons):
        alone = bound(epsilon, one)
        for a, b in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-2)
    slope = jax.grad(lambda e: bound(e, one)[0])(epsilons[1])
    assert np.isfinite(slope) and slope > 0


@slow
def test_unchanged_network_moves_by_nothing():
    m = models.get("square")
    method = nt.Magnitude(nt.Sparsity(0.0))
    report = nt.prune(m.params, m.apply_fn, m.batch, method=method, bound=True).report
    assert float(report.bound) == float(report.tight_bound) == 0.0


# ---- the theorems' normal form

NORMAL = [
    "plain",
    "square",
    "list-of-pairs",
    "max-pool",
    "linen",
    "haiku",
    "equinox-conv",
]


@pytest.mark.parametrize("name", only_fast(["square"], NORMAL))
def test_link_normalized_network_answers_the_same_but_for_a_factor(name):
    m = models.get(name)
    normal, scale = nt.link_normalize(m.params, m.apply_fn, m.batch)
    old, new = m.apply_fn(m.params, m.batch), m.apply_fn(normal, m.batch)
    np.testing.assert_allclose(
        scale * new, old, rtol=1e-4, atol=1e-6 * np.abs(old).max()
    )
    assert jax.tree.structure(normal) == jax.tree.structure(m.params)
    paths = {path for path, *_ in m.sites}
    for path, leaf in jax.tree_util.tree_flatten_with_path(normal)[0]:
        if jax.tree_util.keystr(path, simple=True, separator="/") in paths:
            assert abs(float(jnp.abs(leaf).sum()) - 1) < 1e-5
            assert leaf.dtype == jnp.float32


NOT_NORMAL = {
    "linen-residual": "another scale",
    "linen-batch-norm": "more than one leaf",
    "linen-layer-norm": "no ReLU",
    "linen-attention": "no ReLU",
    "not-relu": "no ReLU",
    "siamese": "abs behind it",
    "called-twice": "b is used at two scales",
    "conv-1d-3d": "outputs have 2 scales",
    "scan-of-layers": "operand of scan",
}


@pytest.mark.parametrize("name", only_fast(["linen-residual"], NOT_NORMAL))
def test_other_networks_have_no_normal_form(name):
    m = models.get(name)
    with pytest.raises(nt.NetTrimError, match=NOT_NORMAL[name]):
        nt.link_normalize(m.params, m.apply_fn, m.batch)


@slow
def test_normal_form_has_a_norm():
    m = models.get("square")
    params = {**m.params, "1": {**m.params["1"], "w": jnp.zeros((8, 8), "float32")}}
    with pytest.raises(nt.NetTrimError, match="1/w are zero"):
        nt.link_normalize(params, m.apply_fn, m.batch)


@slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.3])
def test_bound_is_within_what_the_papers_promise(epsilon, mode):
    m, gamma = models.get("square"), 1.1
    params, _ = nt.link_normalize(m.params, m.apply_fn, m.batch)
    method = nt.NetTrim(epsilon=epsilon, gamma=gamma)
    report = nt.prune(
        params, m.apply_fn, m.batch, method=method, mode=mode, held_out=0.0, bound=True
    ).report
    holds(report)
    z, norms = m.batch, []
    for i in range(3):
        z = z @ params[f"{i}"]["w"] + params[f"{i}"]["b"][None, :]
        z = jnp.maximum(z, 0) if i < 2 else z
        norms.append(float(jnp.linalg.norm(z)))
    if mode == "parallel":
        promised = sum(epsilon * norm for norm in norms)
    else:
        promised = epsilon * norms[0] * gamma  # two layers, the root of gamma each
    assert float(report.bound) * norms[-1] <= promised * (1 + 1e-2)


@slow
def test_a_layer_without_weights_behind_what_has_no_bound():
    """Zero times infinity is not zero."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"a": (6, 8), "b": (8, 8), "c": (8, 8)}
    params = {
        name: jax.random.normal(key, shape, jnp.float32)
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    x = jax.random.normal(keys[3], (20, 6), jnp.float32)

    def apply_fn(params, x):
        y = jax.nn.relu(x @ params["a"]) @ params["b"]
        z = y / jnp.mean(y**2)
        return (z @ params["c"] + y).reshape(-1)

    method = {
        "a|b": nt.Magnitude(nt.Sparsity(0.5)),
        "c": nt.Magnitude(nt.Sparsity(1.0)),
    }
    report = nt.prune(params, apply_fn, x, method=method, bound=True).report
    assert not float(report.bound) < float(report.deviation)
    assert not float(report.tight_bound) < float(report.deviation)
