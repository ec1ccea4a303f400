"""Networks that run as in training are noticed, and no others."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import nettrim_jax as nt
from nettrim_jax.tracing.sites import trace

X = models.data(32, 6)
IMAGES = models.data(8, 6 * 6 * 3).reshape(8, 6, 6, 3)
MIXED = "the rows of a batch depend on each other"
RANDOM = "apply_fn draws random numbers"


def notes(apply_fn, params, batch):
    return trace(models.relaxed(apply_fn), params, batch).notes


def said(found):
    return [text for text in (MIXED, RANDOM) if any(text in one for one in found)]


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(4)(nn.relu(x))


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


class Drops(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(4)(x)


@pytest.mark.parametrize(
    "module, x, sign", [(Dense, X, MIXED), (Conv, IMAGES, MIXED), (Drops, X, RANDOM)]
)
@pytest.mark.parametrize("train", [True, False])
def test_linen(module, x, sign, train):
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    net = module()
    init = jax.eval_shape(
        models.relaxed(functools.partial(net.init, train=False)), rngs, x
    )
    params = models.fill(init)

    def apply_fn(params, x):
        rngs = {"dropout": jax.random.key(2)}
        return net.apply(params, x, train, mutable=["batch_stats"], rngs=rngs)

    found = notes(apply_fn, params, x)
    assert said(found) == [sign] * train
    if train:
        assert "before params/Dense_" in found[0] and "train=False" in found[0]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(self.drop(nnx.relu(self.norm(self.first(x)))))


@pytest.mark.parametrize("train", [True, False])
def test_nnx(train):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        net = Net(nnx.Rngs(0))
    (net.train if train else net.eval)()
    graph, state = nnx.split(net)
    found = notes(lambda state, x: nnx.merge(graph, state)(x), state, X)
    assert said(found) == [MIXED, RANDOM] * train


def test_equinox_under_vmap():
    """A mean over a named axis is one over the rows."""
    dense = eqx.nn.Linear(6, 4, key=jax.random.key(0))

    def one(w, x, mix):
        y = jax.nn.relu(dense(x))
        return w @ (y - jax.lax.pmean(y, "batch") if mix else y)

    for mix in (True, False):
        rows = jax.vmap(functools.partial(one, mix=mix), (None, 0), axis_name="batch")
        assert said(notes(rows, models.normal(3, 4), X)) == [MIXED] * mix


def noise(key, x):
    return jax.random.normal(jax.random.key(key), x.shape, x.dtype)


def centred(x, axis=0):
    return x - x.mean(axis, keepdims=True)


def attention(w, x):
    x = x.reshape(4, 8, 6)
    return jax.nn.softmax(x @ x.swapaxes(1, 2)) @ x @ w


CALLS = {  # what meets all rows, and what does not
    "centred": (lambda w, x: centred(x) @ w, [MIXED]),
    "scaled": (lambda w, x: (x / jnp.max(jnp.abs(x))) @ w, [MIXED]),
    "behind": (lambda w, x: centred(x @ w), [MIXED]),
    "merged": (lambda w, x: centred(x.reshape(8, 4, 6), (0, 1)) @ w, [MIXED]),
    "in steps": (
        lambda w, x: jax.lax.fori_loop(0, 3, lambda i, a: centred(a), x) @ w,
        [MIXED],
    ),
    "in a branch": (
        lambda w, x: jax.lax.cond(x[0, 0] > 0, centred, jnp.abs, x) @ w,
        [MIXED],
    ),
    "noise": (lambda w, x: (x + noise(0, x)) @ w, [RANDOM]),
    "noise in steps": (
        lambda w, x: jax.lax.fori_loop(0, 3, lambda i, a: a + noise(0, a), x) @ w,
        [RANDOM],
    ),
    "in a while loop": (
        lambda w, x: jax.lax.while_loop(lambda a: a.sum() > 1, centred, x) @ w,
        [MIXED],
    ),
    "unused noise": (lambda w, x: (x @ w, noise(0, x))[0], []),
    "layer norm": (lambda w, x: (centred(x, 1) / x.std(1, keepdims=True)) @ w, []),
    "mean beside": (lambda w, x: (x @ w, (x @ w).mean(0)), []),
    "loss": (lambda w, x: ((x @ w) ** 2).mean(), []),
    "attention": (attention, []),
    "time first": (
        lambda w, x: centred(x.reshape(4, 8, 6).swapaxes(0, 1)) @ w,
        [],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_mixes_rows(name):
    call, wanted = CALLS[name]
    assert said(notes(call, models.normal(6, 3), X)) == wanted


def test_squeeze_and_excite_keeps_rows_apart():
    def apply_fn(w, x):
        return (x * jax.nn.sigmoid(x.mean((1, 2), keepdims=True) @ w["gate"])) @ w["w"]

    params = {"gate": models.normal(3, 3), "w": models.normal(3, 2)}
    assert notes(apply_fn, params, IMAGES) == ()


TRAINING = {"relu-forms", "not-relu"}  # with sums over all rows among their outputs


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_models_that_do_not_train(name):
    model = models.get(name)
    found = trace(model.apply_fn, model.params, model.batch).notes
    assert said(found) == ([MIXED] if name in TRAINING else [])


def test_the_report_says_so():
    w = models.normal(6, 3)
    method = nt.Magnitude(nt.Sparsity(0.5))

    def apply_fn(w, x):
        return jax.nn.relu(x - x.mean(0, keepdims=True)) @ w

    pruned = nt.prune(w, apply_fn, X, method=method)
    fitted = nt.refit(w, pruned.mask, apply_fn, X)
    listing = nt.sites(w, apply_fn, X)
    for report in (pruned.report, fitted.report, listing):
        assert said(report.notes) == [MIXED]
        assert report.to_dict()["notes"] == list(report.notes)
        lines = str(report).split("\n")
        assert max(map(len, lines)) <= 100
        start = next(i for i, line in enumerate(lines) if line.startswith("note: "))
        text = " ".join(line.strip() for line in lines[start:])
        assert text.removeprefix("note: ").startswith(report.notes[0])
    assert np.asarray(pruned.mask).sum() == 9
