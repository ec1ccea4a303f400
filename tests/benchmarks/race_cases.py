"""What the race runs on: three trained networks and random layers.

A case has rows to prune with and held-out rows that no method sees, in any form: test
images, later text, fresh draws.
"""

import functools
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import common  # noqa: F401  puts the tests' folder on the path
import jax
import jax.numpy as jnp
import numpy as np
from problems import data_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

PARAMS = pathlib.Path(tempfile.gettempdir()) / "nettrim_race_transformer.msgpack"


class Case(NamedTuple):
    """A network, or a layer alone."""

    params: Any
    apply_fn: Callable
    batch: Any
    held: Any  # a batch that no method sees
    rows: int  # at most, of each layer, to prune with
    held_rows: int  # likewise, of the held-out batch
    last: str | None = None  # the layer that loses 70 % at most, as a pattern
    measure: str | None = None  # what the score is; None where there is none
    score: Callable | None = None  # of params, on data that no method sees
    more: Any = None  # rows without labels to recover with


def lenet(quick=False):
    """LeNet-300-100 on MNIST: the rows of the published codes' table."""
    from mnist import apply_fn, load

    params, train, test, labels = load()
    pick = np.random.default_rng(0).permutation(len(train))[: 512 if quick else 4096]
    held = test[:1000] if quick else test
    score = functools.partial(accuracy, apply_fn, [held], labels[: len(held)])
    rows = len(pick), len(held)
    return Case(
        *(params, apply_fn, train[pick], held, *rows, "Dense_2", "accuracy", score),
        more=train[:800] if quick else train,
    )


def resnet(quick=False):
    """ResNet-20 on CIFAR-10."""
    if data_file("resnet20_cifar10.npz") is None:
        raise SystemExit("needs resnet20_cifar10.npz; set NETTRIM_DATA to its folder")
    from resnet_cifar import ResNet20, images, variables

    folder = pathlib.Path(data_file("resnet20_cifar10.npz")).parent
    more, _ = images(folder, "train", 400 if quick else 8192)
    train = more[: 64 if quick else 256]
    test, labels = images(folder, "test", 200 if quick else 2000)
    apply_fn = ResNet20().apply
    parts = [test[i : i + 500] for i in range(0, len(test), 500)]
    score = functools.partial(accuracy, apply_fn, parts, labels)
    rows = (512, 512) if quick else (4096, 4096)
    held = test[: 64 if quick else 512]
    return Case(
        *(variables(folder), apply_fn, train, held, *rows, "linear", "accuracy", score),
        more=more,
    )


def transformer(quick=False, file=PARAMS):
    """A transformer of characters on tinyshakespeare; trained once, then kept."""
    import shakespeare
    from flax import serialization

    text, later, letters = shakespeare.load()
    network = shakespeare.Transformer(letters)
    pieces = shakespeare.windows(text, 32 if quick else 256, 10**6)[:, :-1]
    held = shakespeare.windows(later, 32 if quick else 128, 1)[:, :-1]
    test = shakespeare.windows(later, 64 if quick else 512, 0)
    params = network.init(jax.random.key(0), pieces[:1])["params"]
    if file.exists():
        params = serialization.from_bytes(params, file.read_bytes())
        params = jax.tree.map(jnp.asarray, params)
    else:
        params = shakespeare.train(network, text, 1000)
        file.write_bytes(serialization.to_bytes(params))
    loss = jax.jit(functools.partial(shakespeare.loss_of, network))

    def apply_fn(params, pieces):
        return network.apply({"params": params}, pieces)

    def score(params):
        return float(loss(params, test))

    rows = (512, 512) if quick else (4096, 8192)
    more = shakespeare.windows(text, 400 if quick else 8192, 10**6)[:, :-1]
    return Case(
        *(params, apply_fn, pieces, held, *rows, "head", "loss", score), more=more
    )


def random(width, relu, rows=2048, held=4096):
    """A layer with correlated inputs: the k-th direction has variance 1 / k."""
    rng = np.random.default_rng(width)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    root = turn / np.sqrt(np.arange(1, width + 1))  # columns are directions
    X = rng.standard_normal((rows + held, width)) @ root.T
    X *= np.sqrt(width / np.sum(root**2))
    W = rng.standard_normal((width, width)) / np.sqrt(width)
    bias = 0.1 * rng.standard_normal(width)
    params = {"bias": bias, "kernel": W}
    params = {name: jnp.asarray(a, jnp.float32) for name, a in params.items()}
    X = jnp.asarray(X, jnp.float32)

    def apply_fn(params, x):
        x = x @ params["kernel"] + params["bias"][None]
        return jax.nn.relu(x) if relu else x

    return Case(params, apply_fn, X[:rows], X[rows:], min(rows, 2048), held)


def accuracy(apply_fn, parts, labels, params):
    """Right answers in percent."""
    answers = [np.argmax(_jitted(apply_fn)(params, part), 1) for part in parts]
    return 100 * float(np.mean(np.concatenate(answers) == labels))


_jitted = functools.cache(jax.jit)

NETWORKS = {"lenet": lenet, "resnet": resnet, "transformer": transformer}
LAYERS = {
    f"random {width}{' relu' if relu else ''}": (width, relu, 2048)
    for width in (512, 1024, 2048)
    for relu in (True, False)
}
# what more rows cost, where only the moments need them all
LAYERS |= {f"rows {rows}": (1024, False, rows) for rows in (2048, 8192, 32768)}


def make(name, quick=False):
    """The case of a name."""
    if name in NETWORKS:
        return NETWORKS[name](quick)
    width, relu, rows = LAYERS[name]
    if quick:
        return random(width // 32, relu, rows // 32, 256)
    return random(width, relu, rows)
