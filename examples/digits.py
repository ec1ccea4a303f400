"""Train a small network on scikit-learn's digits, prune it, look at it, and save it.

Run ``python examples/digits.py``; it takes well under a minute on two cores.
"""

import argparse
import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits

import nettrim_jax as nt

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


class MLP(nn.Module):
    """64-300-100-10 with ReLU."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(300)(x))
        x = nn.relu(nn.Dense(100)(x))
        return nn.Dense(10)(x)


def data(seed=0):
    """Three quarters to train and prune on, a quarter held out."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x, y = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    cut = 3 * len(x) // 4
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def train(model, x, y, steps=2000):
    """AdamW on random batches, the whole run compiled."""
    params = model.init(jax.random.key(0), x[:1])
    optimizer = optax.adamw(3e-3, weight_decay=0.3)

    def loss(params, x, y):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (128,), 0, len(x))
        grads = jax.grad(loss)(params, x[rows], y[rows])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    start = (params, optimizer.init(params))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])(start)


def rivals(model, params, x, report):
    """SparseGPT and magnitude with as many weights in every layer as the report has."""
    left = {f"^{s.path}$": nt.Sparsity(float(s.sparsity)) for s in report.sites}
    found = {}
    for name, rule in (("SparseGPT", nt.SparseGPT), ("magnitude", nt.Magnitude)):
        method = {path: rule(pattern) for path, pattern in left.items()}
        found[name] = nt.prune(params, model.apply, x, method=method, mode="cascade")
    return found


def table(trained, rows):
    """Held-out accuracies, and what each is away from the trained network's."""
    print(f"{'':30} removed, %  accuracy, %  points")
    print(f"{'trained':30} {0:10.1f} {trained:12.1f}")
    for name, sparsity, accuracy in rows:
        # of the figures as they are printed, so that they add up
        apart = round(accuracy, 1) - round(trained, 1)
        print(f"{name:30} {100 * sparsity:10.1f} {accuracy:12.1f} {apart:+7.1f}")


def figure(before, pruned, path):
    """Links and weights of the second layer, and what was removed of all layers."""
    fig, axes = plt.subplots(1, 3, figsize=(15, 3.8), layout="constrained")
    old, new = (p["params"]["Dense_1"]["kernel"] for p in (before, pruned.params))
    nt.plots.links(old, new, ax=axes[0])
    nt.plots.weights(old, new, ax=axes[1])
    nt.plots.sites(pruned.report, ax=axes[2])
    fig.savefig(path, dpi=120)


def save(before, after, folder):
    """Both networks as files; the pruned one is loaded again, and is the same."""
    sizes = []
    for name, params in (("trained", before), ("pruned", after)):
        path = folder / f"nettrim_digits_{name}.safetensors"
        nt.save(path, params)
        sizes.append(path.stat().st_size)
    back = nt.load(path, like=after)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), back, after)
    print(nt.describe(path))
    print(
        f"file: {path}, loaded again: {'the same' if jax.tree.all(same) else 'other'}"
    )
    print(f"bytes, trained {sizes[0]:,}, pruned {sizes[1]:,}")


def main():
    """Train, prune, compare, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(tempfile.gettempdir()) / "nettrim_digits.png"
    parser.add_argument("--figure", type=pathlib.Path, default=default)
    arguments = parser.parse_args()

    (x, y), (x_held_out, y_held_out) = data()
    model = MLP()
    params = train(model, x, y)

    def accuracy(params):
        answer = jnp.argmax(model.apply(params, x_held_out), axis=1)
        return 100 * float(jnp.mean(answer == y_held_out))

    # the convex program, tuned for this network
    tuned = nt.prune(
        params,
        model.apply,
        x,
        method=nt.NetTrim(epsilon=0.13, gamma=1.2, rounds=5),
        mode="cascade",
        solver=nt.ADMM(tol=5e-3),
        held_out=0,
    )
    # an exact budget, as it stands
    exact = nt.prune(params, model.apply, x, method=nt.Sparsity(0.9), mode="cascade")
    print(tuned.report)
    print()
    others = rivals(model, params, x, tuned.report)
    rows = {
        "NetTrim, tuned": tuned,
        **{f"  {name}, as many": pruned for name, pruned in others.items()},
        "Sparsity(0.9)": exact,
    }
    measured = [
        (name, float(pruned.report.sparsity), accuracy(pruned.params))
        for name, pruned in rows.items()
    ]
    table(accuracy(params), measured)
    figure(params, tuned, arguments.figure)
    print(f"figure: {arguments.figure}")
    print()
    save(params, tuned.params, arguments.figure.parent)


if __name__ == "__main__":
    main()
