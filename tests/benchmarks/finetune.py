"""LeNet-300-100 on MNIST: what fine-tuning under a mask regains at 97 % zeros.

Prunes the trained network, then trains what is left with labels: through
``keep_sparse``, and by hand, the params multiplied by the mask after every step, with
the same optimiser, batches and start; from the pruned weights, and from their refit.
Run ``python tests/benchmarks/finetune.py``; needs the data folder.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mnist import apply_fn, load
from problems import data_file

import nettrim_jax as nt

OPTIMIZERS = {
    "adamw": lambda steps: optax.adamw(
        optax.cosine_decay_schedule(1e-2, steps), weight_decay=1e-2
    ),
    "momentum": lambda steps: optax.chain(
        optax.add_decayed_weights(1e-4),
        optax.sgd(optax.cosine_decay_schedule(0.2, steps), momentum=0.9),
    ),
    "adamw, clipped": lambda steps: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-2, steps), weight_decay=1e-2),
    ),
}
METHOD = {
    "Dense_2": nt.SparseGPT(nt.Sparsity(0.7)),
    ".*": nt.SparseGPT(nt.Sparsity(0.97)),
}


def masked(params, mask):
    """The params times the mask."""
    return jax.tree.map(lambda a, keep: a * keep.astype(a.dtype), params, mask)


@functools.partial(jax.jit, static_argnames=("optimizer", "by_hand"))
def train(optimizer, params, mask, images, labels, by_hand):
    """The params after one step per batch, ``[steps, size, ...]``."""

    def loss(params, x, y):
        log = jax.nn.log_softmax(apply_fn(params, x))
        return -jnp.mean(jnp.take_along_axis(log, y[:, None], axis=1))

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        params = optax.apply_updates(params, updates)
        return (masked(params, mask) if by_hand else params, state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, (images, labels))[0][0]


def draw(images, labels, steps, size, seed):
    """Batches drawn with a seed, ``[steps, size, ...]``."""
    picks = np.random.default_rng(seed).integers(0, len(images), (steps, size))
    return images[picks], jnp.asarray(labels.astype("int32")[picks])


def removed(params, mask):
    """The largest magnitude among the weights that the mask removes."""
    most = jax.tree.map(
        lambda a, keep: jnp.abs(jnp.where(keep, 0, a)).max(), params, mask
    )
    return float(max(jax.tree.leaves(most)))


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    params, train_images, test, labels = load()
    train_labels = np.load(data_file("mnist.npz"))["y_train"]

    def accuracy(params):
        return 100 * float((jnp.argmax(apply_fn(params, test), 1) == labels).mean())

    x = train_images[np.random.default_rng(0).permutation(60000)[: arguments.rows]]
    pruned = nt.prune(params, apply_fn, x, method=METHOD)
    starts = {
        "as pruned": pruned.params,
        "refit": nt.refit(params, pruned.mask, apply_fn, x, mode="cascade").params,
    }
    print(f"Trained: {accuracy(params):.2f} %; ", end="")
    print(f"{100 * float(pruned.report.sparsity):.1f} % of the links removed.")
    for name, start in starts.items():
        print(f"{name}: {accuracy(start):.2f} %")
    print("\n| optimiser | start | keep_sparse | by hand | largest removed weight |")
    print("| --- | --- | --- | --- | --- |")
    mask = pruned.mask
    for (name, make), (which, start) in itertools.product(
        OPTIMIZERS.items(), starts.items()
    ):
        optimizer = make(arguments.steps)
        pairs, most = [], 0.0
        for seed in range(arguments.seeds):
            batches = draw(
                train_images, train_labels, arguments.steps, arguments.size, seed
            )
            ours, theirs = (
                train(one, start, mask, *batches, by_hand)
                for one, by_hand in (
                    (nt.keep_sparse(optimizer, mask), False),
                    (optimizer, True),
                )
            )
            pairs.append([accuracy(ours), accuracy(theirs)])
            most = max(most, removed(ours, mask))
        kept, hand = (
            " / ".join(f"{one:.2f}" for one in column)
            for column in zip(*pairs, strict=True)
        )
        print(f"| {name} | {which} | {kept} | {hand} | {most:g} |", flush=True)


if __name__ == "__main__":
    main()
