"""``Taylor`` against the gradient itself, alone and through ``prune``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow
from problems import data_file

import nettrim_jax as nt
from nettrim_jax.results import DIRECT, MethodError


def params_of(rng, dtype="float32"):
    """Of a network with a convolution, a scanned stack and a head."""
    shapes = {"conv": (3, 2, 6), "stack": (2, 6, 6), "bias": (6,), "head": (6, 3)}
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
    return x @ params["head"]


def loss(params, batch):
    """Cross-entropy."""
    logs = jax.nn.log_softmax(apply_fn(params, batch).astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=1))


@pytest.fixture
def given(rng):
    x = jnp.asarray(rng.normal(size=(40, 5, 2)), "float32")
    return params_of(rng), (x, jnp.asarray(rng.integers(0, 3, 40)))


def scores(params, batches):
    """Squares of weight times derivative, summed over batches, in float64."""
    out, slopes_of = {}, jax.jit(jax.grad(loss))
    for batch in batches:
        slopes = slopes_of(params, batch)
        for name, slope in slopes.items():
            square = (np.asarray(params[name], float) * np.asarray(slope, float)) ** 2
            out[name] = out.get(name, 0) + square
    return out


def pruned(given, pattern, batch=None, **settings):
    params, own = given
    method = nt.Taylor(pattern, loss)
    batch = own if batch is None else batch
    return nt.prune(params, apply_fn, batch, method=method, **settings)


def kept_best(mask, score, groups):
    """Whether what is kept has no lower score than what is not, within each group."""
    for kept, own in zip(groups(mask), groups(score), strict=True):
        if own[kept].min() < own[~kept].max() * (1 - 1e-5):
            return False
    return True


def whole(a):
    return [np.ravel(a)]


def by_layer(a):  # the steps of a scan are layers of their own
    return [np.ravel(step) for step in np.asarray(a)]


@slow
@pytest.mark.parametrize("mode", only_fast(["cascade"], ["parallel", "cascade"]))
def test_it_keeps_the_weights_of_largest_first_order_effect(given, mode):
    new = pruned(given, nt.Sparsity(0.5), mode=mode)
    score = scores(given[0], [given[1]])
    for name, groups in (("conv", whole), ("stack", by_layer), ("head", whole)):
        mask = np.asarray(new.mask[name])
        assert mask.sum() == mask.size // 2
        assert kept_best(mask, score[name], groups), name
        same = np.where(mask, np.asarray(given[0][name]), 0)
        np.testing.assert_array_equal(new.params[name], same)
    assert new.params["bias"] is not None and np.all(new.mask["bias"])
    assert all(int(site.result) == DIRECT for site in new.report.sites)


@slow
def test_groups_count_by_their_sum(given):
    new = pruned(given, nt.Neurons(0.5))
    score = scores(given[0], [given[1]])
    for name, axes in (("conv", (0, 1)), ("head", 0)):
        kept = np.asarray(new.mask[name]).any(axis=axes)
        sums = score[name].sum(axis=axes)
        assert kept.sum() == kept.size - round(kept.size / 2)
        assert sums[kept].min() > sums[~kept].max()


@slow
def test_squares_are_summed_over_batches(given):
    params, (x, y) = given
    parts = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]
    new = pruned(given, nt.NM(1, 2), batch=iter(parts))
    score = scores(params, parts)["head"].reshape(3, 2, 3)  # groups along the inputs
    kept = np.asarray(new.mask["head"]).reshape(3, 2, 3)
    np.testing.assert_array_equal(kept, score == score.max(axis=1, keepdims=True))
    # one batch of all gives another sum
    alone = scores(params, [given[1]])["head"]
    assert not np.allclose(alone, score.reshape(6, 3), rtol=0.1)


@slow
def test_a_loss_loses_less_than_by_chance():
    """On labels that the network itself gives, a gradient for every few rows."""
    lost = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        params = params_of(rng)
        x = jnp.asarray(rng.normal(size=(200, 5, 2)), "float32")
        y = jnp.argmax(apply_fn(params, (x, None)), axis=1)
        pattern = nt.Sparsity(0.4)
        parts = list(zip(jnp.split(x, 40), jnp.split(y, 40), strict=True))
        lost.append(
            [
                float(
                    loss(
                        nt.prune(params, apply_fn, iter(parts), method=m).params, (x, y)
                    )
                )
                for m in (nt.Taylor(pattern, loss), nt.Random(pattern))
            ]
        )
    taylor, chance = np.median(lost, axis=0)
    assert taylor < chance


@slow
def test_jit_and_vmap_are_the_loop(given):
    params, batch = given
    both = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), params)

    def mask_of(params):
        return pruned((params, batch), nt.Sparsity(0.5)).mask

    alone = [mask_of(jax.tree.map(lambda a: a[i], both)) for i in range(2)]  # noqa: B023
    together = jax.vmap(mask_of)(both)
    jitted = jax.jit(mask_of)(params)
    for name in params:
        np.testing.assert_array_equal(together[name], [m[name] for m in alone])
        np.testing.assert_array_equal(jitted[name], alone[0][name])


@slow
@pytest.mark.parametrize("dtype", only_fast(["bfloat16"], ["float64", "bfloat16"]))
def test_dtypes_stay(given, dtype, rng):
    params, (x, y) = params_of(rng, dtype), given[1]
    new = pruned((params, (x.astype(dtype), y)), nt.Sparsity(0.5))
    assert all(a.dtype == dtype for a in jax.tree.leaves(new.params))
    assert int(jnp.sum(new.params["head"] != 0)) == 9


@slow
def test_layers_may_have_other_methods(given):
    params, batch = given
    method = {"head": nt.Taylor(nt.Sparsity(0.5), loss), ".*": nt.Wanda(nt.NM(1, 2))}
    new = nt.prune(params, apply_fn, batch, method=method)
    alone = pruned(given, nt.Sparsity(0.5))
    np.testing.assert_array_equal(new.mask["head"], alone.mask["head"])
    assert int(new.mask["stack"].sum()) == params["stack"].size // 2


@pytest.mark.parametrize(
    "wrong, match",
    [
        (lambda params, batch: batch[0], "loss: expected .* one floating number"),
        (lambda params, batch: 1 / None, "loss: expected .* failed: TypeError"),
        (lambda params: jnp.ones(()), "loss: expected .* failed: TypeError"),
        (lambda params, batch: jnp.ones((), int), "loss: expected .* floating"),
    ],
)
def test_losses_that_are_none(given, wrong, match):
    params, batch = given
    with pytest.raises(MethodError, match=match):
        nt.prune(params, apply_fn, batch, method=nt.Taylor(nt.NM(1, 2), wrong))


@pytest.mark.parametrize("wrong", [None, 0.1, "loss"])
def test_what_is_no_loss(wrong):
    with pytest.raises(MethodError, match=r"Taylor\(loss=.*expected a function"):
        nt.Taylor(nt.Sparsity(0.5), wrong)


@slow
def test_on_a_trained_network():
    """LeNet-300-100 at 80 %: kept as by a loop; small batches lose less."""
    if data_file("lenet300_mnist.npz") is None or data_file("mnist.npz") is None:
        pytest.skip("lenet300_mnist.npz or mnist.npz is absent; set NETTRIM_DATA")
    flat, mnist = (np.load(data_file(f"{n}.npz")) for n in ("lenet300_mnist", "mnist"))
    params = {name: jnp.asarray(flat[name]) for name in flat.files}
    x = jnp.asarray(mnist["x_train"][:2048].reshape(-1, 784) / 255, jnp.float32)
    y = jnp.asarray(mnist["y_train"][:2048].astype("int32"))

    def lenet(params, batch):
        x = batch[0]
        for i in range(3):
            x = x @ params[f"Dense_{i}/kernel"] + params[f"Dense_{i}/bias"][None, :]
            x = jax.nn.relu(x) if i < 2 else x
        return x

    def cross_entropy(params, batch):
        logs = jax.nn.log_softmax(lenet(params, batch))
        return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=1))

    gradient = jax.jit(jax.grad(cross_entropy))

    def lost(size):
        """The loss on other images; the scores are those of a loop of our own."""
        parts = [(x[i : i + size], y[i : i + size]) for i in range(0, 1024, size)]
        method = nt.Taylor(nt.Sparsity(0.8), cross_entropy)
        pruned = nt.prune(params, lenet, iter(parts), method=method)
        slopes = [gradient(params, part) for part in parts]
        for name in (f"Dense_{i}/kernel" for i in range(3)):
            score = np.asarray(params[name]) ** 2 * sum(s[name] ** 2 for s in slopes)
            kept = np.asarray(pruned.mask[name])
            assert kept.sum() == round(0.2 * kept.size)
            # rounding may swap scores that are equal but for it
            assert score[kept].min() >= (1 - 1e-3) * score[~kept].max()
        return float(cross_entropy(pruned.params, (x[1024:], y[1024:])))

    # the mean gradient of a network at its minimum is noise, its parts are less so
    assert lost(16) < lost(1024)
