"""``OBD``, ``Fisher`` and ``Saliency`` against Jacobians and Hessians of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.calibration.batches import Source, parts
from nettrim_jax.calibration.curvature import GaussNewton, SampleGradient
from nettrim_jax.calibration.gradient import LossSlope
from nettrim_jax.calibration.model import Model
from nettrim_jax.results import DIRECT, MethodError
from nettrim_jax.tracing import entries, outer
from nettrim_jax.tracing.sites import trace

N, OUT = 12, 3
HALF = nt.Sparsity(0.5)


def params_of(rng, dtype="float64", out=OUT):
    """Of a network with a convolution, a scanned stack, a tied matrix and a head."""
    shapes = {"conv": (3, 2, 4), "stack": (2, 4, 4), "tied": (4, 4), "bias": (4,)}
    shapes["head"] = (4, out)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


def apply_fn(params, batch):
    x, _ = batch
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    x = jnp.mean(jax.nn.relu(x), axis=1)

    def step(x, w):
        return jnp.tanh(x @ w + params["bias"][None, :]), None

    x, _ = jax.lax.scan(step, x, params["stack"])
    x = jnp.tanh(jnp.tanh(x @ params["tied"]) @ params["tied"])
    return x @ params["head"]


def loss(params, batch):
    """Cross-entropy, of the mean over samples."""
    logs = jax.nn.log_softmax(apply_fn(params, batch))
    return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=1))


STATISTICS = [GaussNewton(), GaussNewton(loss), SampleGradient(loss)]


@pytest.fixture
def given(rng):
    x = jnp.asarray(rng.normal(size=(N, 5, 2)))
    return params_of(rng), (x, jnp.asarray(rng.integers(0, OUT, N)))


def measured(statistic, params, batch, network=apply_fn, weights=None, key=0):
    """A statistic of all layers, in the shapes of their leaves."""
    source = Source(Model(params, network), batch, jax.random.key(key), weights)
    total = {}
    for part in parts(source):
        sites = part.network.sites
        every = tuple(range(len(sites)))
        for k, value in statistic.of(part, every, part.model.leaves).items():
            leaf = jnp.zeros(part.model.leaves[sites[k].leaf].shape, value.dtype)
            value = entries.write(entries.of(leaf, sites[k].index), value)
            total[sites[k].path] = total.get(sites[k].path, 0) + value
    return total


def flat_jacobian(params, batch, name, network=apply_fn):
    """The outputs of each sample by one leaf, ``[N, out, size]``."""
    own = jax.jacobian(lambda leaf: network({**params, name: leaf}, batch))(
        params[name]
    )
    out = np.asarray(own)
    return out.reshape(*out.shape[:2], -1)


def dense_gauss_newton(params, batch, name, softmax):
    """The whole matrix of one leaf, ``[size, size]``, from dense Jacobians."""
    J = flat_jacobian(params, batch, name)
    H = np.broadcast_to(np.eye(OUT), (N, OUT, OUT))
    if softmax:
        p = np.asarray(jax.nn.softmax(apply_fn(params, batch)))
        H = np.einsum("no,op->nop", p, np.eye(OUT)) - p[:, :, None] * p[:, None, :]
    return np.einsum("noi,nop,npj->ij", J, H, J)


@pytest.mark.parametrize("softmax", only_fast([True], [False, True]))
def test_the_diagonal_is_that_of_the_dense_gauss_newton_matrix(given, softmax):
    params, batch = given
    found = measured(GaussNewton(loss if softmax else None), params, batch)
    assert set(found) == {"conv", "stack", "tied", "head"}
    for name, value in found.items():
        dense = dense_gauss_newton(params, batch, name, softmax)
        expected = np.diagonal(dense).reshape(params[name].shape)
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-14)


CONVOLUTIONS = {
    "stride, two axes": (
        (3, 2, 2, 4),
        dict(window_strides=(2, 1), padding="SAME"),
        ("NHWC", "HWIO", "NHWC"),
    ),
    "groups": (
        (6, 1, 3, 2),
        dict(window_strides=(1, 1), padding="VALID", feature_group_count=2),
        ("NCHW", "OIHW", "NCHW"),
    ),
    "dilated, transposed": (
        (2, 2, 2, 3),
        dict(
            window_strides=(1, 1),
            padding=((1, 2), (0, 1)),
            lhs_dilation=(2, 1),
            rhs_dilation=(1, 2),
        ),
        ("NHWC", "HWIO", "NCHW"),
    ),
}


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_kernels_of_every_layout(name, windows, rng, monkeypatch):
    """By products of windows, and by a convolution per sample where these are large."""
    if not windows:
        monkeypatch.setattr(outer, "WINDOWS", 0)
    shape, told, numbers = CONVOLUTIONS[name]
    params = {"k": jnp.asarray(rng.normal(size=shape))}
    size = (N, 5, 4, 2) if numbers[0] == "NHWC" else (N, 2, 5, 4)
    x = jnp.asarray(rng.normal(size=size))

    def network(params, x):
        z = jax.lax.conv_general_dilated(
            x, params["k"], dimension_numbers=numbers, **told
        )
        z = jnp.tanh(z).reshape(len(x), -1)
        return z[:, :4] + z[:, 4:8] * z[:, -4:]

    found = measured(GaussNewton(), params, x, network)["k"]
    J = flat_jacobian(params, x, "k", network)
    expected = (J**2).sum((0, 1)).reshape(shape)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    # the other way is taken where it is to be
    flat = trace(network, params, x[:1]).flat
    assert bool(outer.outer_of(flat, (0,))) == windows


def linear(params, batch):
    return batch[0] @ params["w"]


def linear_loss(params, batch):
    logs = jax.nn.log_softmax(linear(params, batch))
    return -jnp.sum(jnp.take_along_axis(logs, batch[1][:, None], axis=1))


def test_where_outputs_are_linear_it_is_the_hessian_of_the_loss(rng):
    params = {"w": jnp.asarray(rng.normal(size=(5, 4)))}
    batch = jnp.asarray(rng.normal(size=(9, 5))), jnp.asarray(rng.integers(0, 4, 9))
    found = measured(GaussNewton(linear_loss), params, batch, linear)["w"]
    whole = np.asarray(jax.hessian(linear_loss)(params, batch)["w"]["w"])
    expected = np.einsum("ijij->ij", whole)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@slow
def test_many_outputs_are_an_unbiased_estimate(rng):
    """Forty outputs a sample: more than have a backward pass of their own."""
    params = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(3, 40))}
    params = jax.tree.map(jnp.asarray, params)
    x = jnp.asarray(rng.normal(size=(100, 4)))
    draws = [measured(GaussNewton(), params, x, by_position, key=i) for i in range(40)]
    for name, size in {"a": 12, "b": 120}.items():
        exact = (flat_jacobian(params, x, name, by_position) ** 2).sum((0, 1))
        every = np.stack([np.ravel(one[name]) for one in draws])
        assert every.shape == (40, size)
        if name == "b":  # each sign stands alone there, and its square is one
            np.testing.assert_allclose(every, np.tile(exact, (40, 1)), rtol=1e-9)
            continue
        assert not np.allclose(every[0], every[1])
        spread = every.std(0, ddof=1) / np.sqrt(len(every))
        assert np.all(np.abs(every.mean(0) - exact) < 5 * spread)
        assert np.all(spread < 0.1 * exact)


@slow
def test_information_is_the_sum_of_squared_gradients_of_samples(given):
    params, (x, y) = given
    found = measured(SampleGradient(loss), params, (x, y))
    each = jax.vmap(lambda x, y: jax.grad(loss)(params, (x[None], y[None])))(x, y)
    for name, value in found.items():
        expected = np.sum(np.asarray(each[name]) ** 2, axis=0)
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-16)


@slow
def test_saliency_sums_before_it_takes_the_size(given):
    params, (x, y) = given
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    found = measured(LossSlope(loss), params, iter(batches))
    slopes = [jax.grad(loss)(params, one) for one in batches]
    for name, value in found.items():
        expected = slopes[0][name] + slopes[1][name]
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-14)


def test_gradients_are_differences(given):
    """Of the loss, by single weights of each layer."""
    params, batch = given
    found = measured(LossSlope(loss), params, batch)
    for name, value in found.items():
        at, step = (0,) * value.ndim, 1e-5
        ends = [
            float(loss({**params, name: params[name].at[at].add(s)}, batch))
            for s in (step, -step)
        ]
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(value[at], difference, rtol=1e-6)


@pytest.mark.parametrize(
    "statistic", only_fast(STATISTICS[:1], STATISTICS), ids=["outputs", "loss", "sum"]
)
def test_a_stream_counts_as_its_batches_together(given, statistic):
    params, (x, y) = given
    whole = measured(statistic, params, (x, y))
    stream = iter([(x[:5], y[:5]), (x[5:7], y[5:7]), (x[7:], y[7:])])
    for name, value in measured(statistic, params, stream).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    "statistic", only_fast(STATISTICS[:1], STATISTICS), ids=["outputs", "loss", "sum"]
)
def test_samples_of_weight_zero_do_not_count(given, statistic):
    params, (x, y) = given
    weights = np.ones(N, "float32")
    weights[[1, 5, 6]] = 0
    keep = weights > 0
    some = measured(statistic, params, (x, y), weights=weights)
    alone = measured(statistic, params, (x[keep], y[keep]))
    for name, value in some.items():
        np.testing.assert_allclose(value, alone[name], rtol=1e-9, atol=1e-15)


def by_position(params, batch):
    return jnp.tanh(batch @ params["a"]) @ params["b"]


def test_outputs_at_positions_of_weight_zero_do_not_count(rng):
    params = {name: jnp.asarray(rng.normal(size=(4, 4))) for name in "ab"}
    x = jnp.asarray(rng.normal(size=(6, 3, 4)))
    weights = np.ones((6, 3), "float32")
    weights[2, 1:] = weights[4, 0] = 0
    found = measured(GaussNewton(), params, x, by_position, weights)
    for name, value in found.items():
        J = jax.jacobian(lambda w: by_position({**params, name: w}, x))(params[name])  # noqa: B023
        rows = np.asarray(J)[weights > 0]  # [rows, 4, 4, 4]
        np.testing.assert_allclose(value, (rows**2).sum((0, 1)), rtol=1e-9)


def fixed_number(params, batch):
    return jnp.tanh(batch.reshape(10, 2, 4).sum(1) @ params["a"]) @ params["b"]


@slow
def test_a_network_of_one_number_of_samples_is_one_sample(rng):
    params = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(3, 2))}
    params = jax.tree.map(jnp.asarray, params)
    x = jnp.asarray(rng.normal(size=(20, 4)))
    found = measured(GaussNewton(), params, x, fixed_number)
    for name, value in found.items():
        J = flat_jacobian(params, x, name, fixed_number)
        expected = (J**2).sum((0, 1)).reshape(params[name].shape)
        np.testing.assert_allclose(value, expected, rtol=1e-9)


# ---- as rules


def methods():
    return {
        "obd": lambda pattern: nt.OBD(pattern),
        "obd loss": lambda pattern: nt.OBD(pattern, loss),
        "fisher": lambda pattern: nt.Fisher(pattern, loss),
        "saliency": lambda pattern: nt.Saliency(pattern, loss),
    }


def scores(name, params, batch):
    """Of all layers, from derivatives of JAX, in the shapes of their leaves."""
    out, (x, y) = {}, batch
    slopes = jax.grad(loss)(params, batch)
    each = jax.vmap(lambda x, y: jax.grad(loss)(params, (x[None], y[None])))(x, y)
    for leaf in ("conv", "stack", "tied", "head"):
        w = np.asarray(params[leaf])
        if name.startswith("obd"):
            dense = dense_gauss_newton(params, batch, leaf, name == "obd loss")
            out[leaf] = w**2 * np.diagonal(dense).reshape(w.shape) / 2
        elif name == "fisher":
            out[leaf] = w**2 * np.sum(np.asarray(each[leaf]) ** 2, axis=0) / 2
        else:
            out[leaf] = np.abs(w * np.asarray(slopes[leaf]))
    return out


RULES = only_fast(["obd loss"], list(methods()))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_what_has_the_largest_score(given, name):
    params, batch = given
    method = methods()[name](nt.Neurons(0.5))
    new = nt.prune(params, apply_fn, batch, method={"head": None, ".*": method})
    score = scores(name, params, batch)
    sums = score["tied"].sum(0)
    kept = np.asarray(new.mask["tied"]).any(0)
    assert kept.sum() == 2 and sums[kept].min() > sums[~kept].max()
    alone = nt.prune(params, apply_fn, batch, method={"head": methods()[name](HALF)})
    mask = np.asarray(alone.mask["head"])
    assert mask.sum() == mask.size // 2
    assert score["head"][mask].min() > score["head"][~mask].max()
    same = np.where(mask, np.asarray(params["head"]), 0)
    np.testing.assert_array_equal(alone.params["head"], same)
    assert int(alone.report.sites[0].result) == DIRECT


@slow
@pytest.mark.parametrize("name", RULES)
def test_under_the_networks_scope_all_scores_are_compared(given, name):
    params, batch = given
    method = methods()[name](nt.Sparsity(0.6, scope="network"))
    new = nt.prune(params, apply_fn, batch, method=method)
    score = scores(name, params, batch)
    mine = np.concatenate([np.ravel(new.mask[leaf]) for leaf in score])
    flat = np.concatenate([np.ravel(own) for own in score.values()])
    assert mine.sum() == mine.size - round(0.6 * mine.size)
    assert flat[mine].min() >= flat[~mine].max() * (1 - 1e-6)


@slow
def test_the_networks_scope_reads_a_stream_once(given):
    params, (x, y) = given
    method = nt.OBD(nt.Sparsity(0.6, scope="network"))
    stream = iter([(x[:5], y[:5]), (x[5:], y[5:])])
    new = nt.prune(params, apply_fn, stream, method=method)
    whole = nt.prune(params, apply_fn, (x, y), method=method)
    for name, mask in whole.mask.items():
        np.testing.assert_array_equal(new.mask[name], mask)


@slow
@pytest.mark.parametrize("scope", ["layer", "network"])
def test_jit_and_vmap_are_the_loop(given, scope):
    params, batch = given
    both = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), params)
    pattern = nt.Sparsity(0.5, scope=scope)

    def mask_of(params):
        method = nt.OBD(pattern, loss)
        return nt.prune(params, apply_fn, batch, method=method).mask

    alone = [mask_of(jax.tree.map(lambda a: a[i], both)) for i in range(2)]  # noqa: B023
    together = jax.vmap(mask_of)(both)
    jitted = jax.jit(mask_of)(params)
    for name in params:
        np.testing.assert_array_equal(together[name], [m[name] for m in alone])
        np.testing.assert_array_equal(jitted[name], alone[0][name])


@slow
@pytest.mark.parametrize("name", methods())
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_stay(given, rng, dtype, name):
    params, (x, y) = params_of(rng, dtype), given[1]
    method, batch = methods()[name](nt.NM(1, 2)), (x.astype(dtype), y)
    new = nt.prune(params, apply_fn, batch, method=method, mode="cascade")
    assert all(a.dtype == dtype for a in jax.tree.leaves(new.params))
    assert int(jnp.sum(new.params["head"] != 0)) == 6


def with_decay(params, batch):
    return loss(params, batch) + 0.1 * jnp.sum(params["head"] ** 2)


def of_another_network(params, batch):
    return jnp.mean((jnp.tanh(batch[0]).sum((1, 2)) - params["head"].sum()) ** 2)


@pytest.mark.parametrize(
    "make, wrong, match",
    [
        (nt.OBD, with_decay, "through the outputs of apply_fn alone, but head"),
        (nt.OBD, of_another_network, "through the outputs of apply_fn alone"),
        (nt.OBD, lambda params, batch: batch[0], "loss: .* one floating number"),
        (nt.OBD, lambda params: 0.0, "loss: .* failed: TypeError"),
        (nt.Fisher, lambda params, batch: batch[0], "loss: .* one floating number"),
        (nt.Fisher, lambda params, batch: 1 / None, "loss: .* failed: TypeError"),
        (nt.Saliency, lambda params, batch: batch[0], "loss: .* one floating number"),
    ],
)
def test_losses_that_are_none(given, make, wrong, match):
    params, batch = given
    with pytest.raises(MethodError, match=match):
        nt.prune(params, apply_fn, batch, method={"head": make(HALF, wrong)})


@pytest.mark.parametrize("make", [nt.OBD, nt.Fisher, nt.Saliency])
def test_what_is_no_loss(make):
    with pytest.raises(MethodError, match=r"\(loss=0.1\): expected a function"):
        make(HALF, 0.1)
    if make is not nt.OBD:
        with pytest.raises(MethodError, match=r"\(loss=None\): expected a function"):
            make(HALF)


def looping(params, batch):
    def more(carry):
        return carry[0] + 1, 0.9 * carry[1]

    h = jax.lax.while_loop(lambda c: c[0] < 3, more, (0, batch @ params["a"]))[1]
    return h @ params["b"]


def test_a_network_without_derivatives_is_refused(rng):
    params = {name: jnp.asarray(rng.normal(size=(4, 4))) for name in "ab"}
    x = jnp.asarray(rng.normal(size=(6, 4)))
    with pytest.raises(MethodError, match="expected apply_fn.*reverse-mode"):
        nt.prune(params, looping, x, method=nt.OBD(HALF))
