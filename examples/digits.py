"""Train a small network on scikit-learn's digits, prune it, and look at it.

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


def magnitude(model, params, x, report):
    """As many non-zeros per layer as the report has, the largest ones."""
    method = {
        f"^{site.path}$": nt.Magnitude(nt.Sparsity(float(site.sparsity)))
        for site in report.sites
    }
    return nt.prune(params, model.apply, x, method=method).params


def figure(before, after, path):
    """Links of the second layer before and after, and the weights' histogram."""
    trained = np.asarray(before["params"]["Dense_1"]["kernel"])
    pruned = np.asarray(after["params"]["Dense_1"]["kernel"])
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for ax, weights, name in zip(
        axes, (trained, pruned), ("trained", "pruned"), strict=False
    ):
        ax.imshow(weights.T != 0, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        share = 100 * np.mean(weights != 0)
        ax.set(
            title=f"links, {name}: {share:.1f} %", xlabel="input unit", ylabel="unit"
        )
    widest = float(np.abs(np.concatenate([trained.ravel(), pruned.ravel()])).max())
    bins = np.linspace(-widest, widest, 81)
    nonzero = pruned[pruned != 0]
    axes[2].hist(trained.ravel(), bins, color="0.75", label="trained")
    axes[2].hist(
        nonzero,
        bins,
        histtype="step",
        color="#0050a0",
        lw=1.5,
        label="pruned, not zero",
    )
    axes[2].set(title="weights", xlabel="value", ylabel="count", yscale="log")
    axes[2].legend(loc="upper left", fontsize="small")
    fig.savefig(path, dpi=120)


def main():
    """Train, prune, compare, draw."""
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

    method = nt.NetTrim(epsilon=0.13, gamma=1.2, rounds=5)
    pruned = nt.prune(
        params,
        model.apply,
        x,
        method=method,
        mode="cascade",
        solver=nt.ADMM(tol=5e-3),
        held_out=0,
    )
    print(pruned.report)
    print()
    rival = accuracy(magnitude(model, params, x, pruned.report))
    before, after = accuracy(params), accuracy(pruned.params)
    print(f"links removed               {100 * float(pruned.report.sparsity):5.1f} %")
    print(f"held-out accuracy, trained  {before:5.1f} %")
    print(f"held-out accuracy, Net-Trim {after:5.1f} %  ({after - before:+.1f} points)")
    print(f"held-out accuracy, magnitude{rival:6.1f} %  ({rival - before:+.1f} points)")
    print(f"Net-Trim is {after - rival:.1f} points ahead at the same number of links")
    figure(params, pruned.params, arguments.figure)
    print(f"figure: {arguments.figure}")


if __name__ == "__main__":
    main()
