"""Train a convolutional network on scikit-learn's digits, and make it really smaller.

In rounds: choose neurons and channels, take them out of the arrays, train again. Run
``python examples/smaller.py``; it takes less than a minute on two cores.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import data

import nettrim_jax as nt


class CNN(nn.Module):
    """Two convolutions and two dense layers, with ReLU."""

    widths: tuple[int, ...] = (32, 64, 128)

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 8, 8, 1)
        for width in self.widths[:2]:
            x = nn.relu(nn.Conv(width, (3, 3), padding="VALID")(x))
        x = nn.relu(nn.Dense(self.widths[2])(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def fit(params, apply_fn, x, y, steps, rate=2e-3):
    """Adam on random batches with a falling rate."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(params, x, y):
        logits = apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, key):
        rows = jax.random.randint(key, (64,), 0, len(x))
        grads = jax.grad(loss)(params, x[rows], y[rows])
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(params, state, key)
    return params


def milliseconds(networks, x, runs=20):
    """Median time of each network under jit, the networks in turns."""
    functions = [jax.jit(apply_fn) for _, apply_fn in networks]
    times = [[] for _ in networks]
    for run in range(runs + 1):
        for spent, function, (params, _) in zip(
            times, functions, networks, strict=True
        ):
            start = time.perf_counter()
            jax.block_until_ready(function(params, x))
            if run:  # the first one compiles
                spent.append(1000 * (time.perf_counter() - start))
    return [statistics.median(spent) for spent in times]


def save(path, params):
    """Every array under its path, by NumPy alone."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    np.savez(path, **{jax.tree_util.keystr(keys): leaf for keys, leaf in leaves})


def load(path, like):
    """The arrays of a tree like this one, whatever their shapes."""
    with np.load(path) as stored:
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: jnp.asarray(stored[jax.tree_util.keystr(keys)]), like
        )


def main():
    """Train, trim, time, save and load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(tempfile.gettempdir()) / "nettrim_smaller.npz"
    parser.add_argument("--file", type=pathlib.Path, default=default)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    steps = arguments.steps

    (x, y), (x_held_out, y_held_out) = data()
    model = CNN()
    params = fit(model.init(jax.random.key(0), x[:1]), model.apply, x, y, steps)

    def accuracy(params, apply_fn):
        answer = jnp.argmax(apply_fn(params, x_held_out), axis=1)
        return 100 * float(jnp.mean(answer == y_held_out))

    trimmed = nt.trim(
        params,
        model.apply,
        x,
        nt.Units(0.6),
        train=lambda params, apply_fn: fit(params, apply_fn, x, y, steps // 2),
        until=arguments.rounds,
        metric=accuracy,
    )
    print(trimmed)
    print()

    # the saved arrays run without this library, in a module of their sizes
    save(arguments.file, trimmed.params)
    smaller = CNN(tuple(trimmed.last.units.values()))
    loaded = load(arguments.file, params)
    answers = smaller.apply(loaded, x_held_out)
    expected = trimmed.apply_fn(trimmed.params, x_held_out)
    same = jnp.allclose(answers, expected, rtol=1e-4, atol=1e-4)
    size = arguments.file.stat().st_size / 1024
    print(f"file: {arguments.file}, {size:.0f} KiB")
    print(f"loaded into CNN({smaller.widths}): same answers: {same}")
    print()

    total = steps + arguments.rounds * (steps // 2)
    anew = smaller.init(jax.random.key(0), x[:1])
    anew = fit(anew, smaller.apply, x, y, total)
    rows = [
        ("trained", params, model.apply),
        ("trimmed", trimmed.params, trimmed.apply_fn),
        ("of its sizes, trained anew", anew, smaller.apply),
    ]
    times = milliseconds([(params, function) for _, params, function in rows], x)
    print(f"network                     parameters  held-out %  ms for {len(x)} images")
    for (name, params, function), spent in zip(rows, times, strict=True):
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        right = accuracy(params, function)
        print(f"{name:<27} {count:>10,} {right:>11.1f} {spent:>9.2f}")


if __name__ == "__main__":
    main()
