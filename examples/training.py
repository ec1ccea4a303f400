"""Prune a network for scikit-learn's digits while it trains, by every schedule.

One loop for all: schedules differ by the optimiser they wrap. Run ``python
examples/training.py``; it takes a minute or two on two cores.
"""

import argparse
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from digits import MLP, data

import nettrim_jax as nt

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RATE = 3e-3


def optimisers(steps, level, listing):
    """An optimiser by name; the output layer loses at most 70 %."""
    adam = optax.adamw(RATE, weight_decay=0.1)

    def sparse(make):
        schedules = {"Dense_2": make(min(level, 0.7)), ".*": make(level)}
        return nt.train_sparse(adam, schedules, layers=listing)

    every, end = max(steps // 50, 1), 3 * steps // 4
    cost = nt.connection_cost(3e-2, RATE, layers=listing)
    return {
        "dense": adam,
        "gradual": sparse(
            lambda level: nt.Gradual(nt.Sparsity(level), end=end, every=every)
        ),
        "rounds": sparse(
            lambda level: nt.Rounds(
                nt.Sparsity(level), starts=(steps // 4, steps // 2, end)
            )
        ),
        "RigL": sparse(
            lambda level: nt.Regrow(nt.Sparsity(level), every=every, end=end)
        ),
        "SET": sparse(
            lambda level: nt.Regrow(
                nt.Sparsity(level), every=every, end=end, by="random"
            )
        ),
        "dense-sparse-dense": sparse(
            lambda level: nt.DenseSparseDense(
                nt.Sparsity(level), sparse=(steps // 4, end)
            )
        ),
        "threshold": nt.train_sparse(
            adam, nt.Threshold(quality=1.0, every=every, end=end), layers=listing
        ),
        "connection cost": optax.chain(adam, cost),
    }


def train(model, optimizer, params, batches, steps):
    """Held-out accuracy and share of zeros after each step, of a run in one scan."""
    (x, y), (x_held_out, y_held_out) = batches

    def loss(params, x, y):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (128,), 0, len(x))
        grads = jax.grad(loss)(params, x[rows], y[rows])
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        guess = jnp.argmax(model.apply(params, x_held_out), axis=1)
        matrices = [a for a in jax.tree.leaves(params) if a.ndim == 2]
        zeros = sum(jnp.sum(a == 0) for a in matrices) / sum(a.size for a in matrices)
        return (params, state), (jnp.mean(guess == y_held_out), zeros)

    keys = jax.random.split(jax.random.key(1), steps)
    start = (params, optimizer.init(params))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(start)


def figure(runs, path):
    """Accuracy and share of zeros over the steps."""
    fig, axes = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    width = max(len(next(iter(runs.values()))[0]) // 40, 1)
    for name, (right, zeros) in runs.items():
        smooth = np.convolve(right, np.ones(width) / width, "valid")
        style = {"color": "black", "lw": 1} if name == "dense" else {"lw": 1.5}
        axes[0].plot(np.arange(len(smooth)) + width, 100 * smooth, label=name, **style)
        axes[1].plot(np.arange(1, len(zeros) + 1), 100 * zeros, **style)
    axes[0].set(ylabel="held-out accuracy, %", ylim=(85, 100))
    axes[1].set(ylabel="weights that are zero, %", xlabel="step")
    axes[0].legend(ncols=2, frameon=False)
    fig.savefig(path, dpi=120)


def main():
    """Train by every schedule, print a table and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(tempfile.gettempdir()) / "nettrim_training.png"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--level", type=float, default=0.95)
    arguments = parser.parse_args()

    batches, model, steps = data(), MLP(), arguments.steps
    x = batches[0][0]
    params = model.init(jax.random.key(0), x[:1])
    listing = nt.sites(params, model.apply, x)
    runs = {}
    print("schedule             zeros %  held-out %  when half of the steps are done")
    for name, optimizer in optimisers(steps, arguments.level, listing).items():
        (params_after, state), curves = train(model, optimizer, params, batches, steps)
        if "cost" not in name and name != "dense":
            nt.check_sparse(params_after, state)
        right, zeros = runs[name] = tuple(map(np.asarray, curves))
        # the mean of the last steps: one step alone moves by some tenths of a point
        last = 100 * right[-max(steps // 20, 1) :].mean()
        half = 100 * right[: steps // 2][-max(steps // 20, 1) :].mean()
        print(f"{name:<20} {100 * zeros[-1]:>7.1f} {last:>11.2f} {half:>12.2f}")
    figure(runs, arguments.out)
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
