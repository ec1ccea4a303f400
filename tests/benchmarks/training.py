"""Pruning once and training on, against pruning while training, on LeNet-300-100.

MNIST with its labels. From the trained network: ``Reconstruct`` in cascade on images
without labels, then steps on the mask; the smallest weights at once, then steps; and
every schedule of ``train_sparse`` over as many steps. From scratch: gradual, RigL, SET
and a random mask that stays. The output layer loses at most 70 %. The rate of each
way was fixed on training images that no run has (``--on beside`` prints those of
``--rates``), from a network that has not seen these images either. Needs the data
folder. From the root:

    python tests/benchmarks/training.py --on beside --rates 3e-4 1e-3 3e-3
    python tests/benchmarks/training.py --on test --seeds 3
"""

import argparse
import collections
import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mnist import apply_fn, load
from problems import data_file

import nettrim_jax as nt

BESIDE = 4000  # training images that no run has
SIZE = 128
# by start, way and steps: the best on images that no run has, at 95 % zeros
RATES = collections.defaultdict(lambda: 3e-3)
RATES["trained", "Magnitude, then steps", 3000] = 1e-2
RATES |= {
    ("trained", name, 1000): 1e-2
    for name in (
        *("Reconstruct, then steps", "Magnitude, then steps"),
        *("Gradual", "Rounds", "Regrow (RigL)"),
    )
}
RATES |= {
    ("scratch", name, 3000): 1e-2
    for name in ("Regrow (RigL)", "Regrow (SET)", "a random mask")
}


def levels(level):
    """A level per layer."""
    return {"Dense_2": min(level, 0.7), ".*": level}


def sparse(make):
    """A wrapper of an optimiser by schedules of each level."""

    def wrapped(adam, level, listing, steps):
        schedules = {name: make(one, steps) for name, one in levels(level).items()}
        return nt.train_sparse(adam, schedules, layers=listing)

    return wrapped


def gradual(level, steps):
    """Weights go until three quarters of the steps are done."""
    return nt.Gradual(nt.Sparsity(level), end=3 * steps // 4, every=10)


def rounds(level, steps):
    """Three equal rounds."""
    starts = (0, steps // 4, steps // 2)
    return nt.Rounds(nt.Sparsity(level), starts=starts)


def regrow(by):
    """RigL's schedule or SET's."""

    def make(level, steps):
        pattern = nt.Sparsity(level)
        return nt.Regrow(pattern, every=50, end=3 * steps // 4, share=0.3, by=by)

    return make


def dense_sparse_dense(level, steps):
    """Sparse in the middle half; dense at the end, so nothing is saved."""
    return nt.DenseSparseDense(nt.Sparsity(level), sparse=(steps // 4, 3 * steps // 4))


class Kept(NamedTuple):
    """What was pruned before, whose zeros stay."""

    method: Callable


TRAINED = {
    "Reconstruct, then steps": Kept(lambda level: nt.Reconstruct(nt.Sparsity(level))),
    "Magnitude, then steps": Kept(lambda level: nt.Magnitude(nt.Sparsity(level))),
    "Gradual": sparse(gradual),
    "Rounds": sparse(rounds),
    "Regrow (RigL)": sparse(regrow("gradient")),
    "DenseSparseDense": sparse(dense_sparse_dense),
}
SCRATCH = {
    "Gradual": sparse(gradual),
    "Regrow (RigL)": sparse(regrow("gradient")),
    "Regrow (SET)": sparse(regrow("random")),
    "a random mask": Kept(lambda level: nt.Random(nt.Sparsity(level))),
}


def costed(strength):
    """A cost on connections, whatever share of zeros it gives."""

    def wrapped(rate, steps, listing):
        schedule = optax.cosine_decay_schedule(rate, steps)
        return optax.chain(
            optax.adamw(schedule, weight_decay=1e-4),
            nt.connection_cost(strength, schedule, layers=listing),
        )

    return wrapped


@functools.partial(jax.jit, static_argnames=("optimizer",))
def train(optimizer, params, images, labels, picks):
    """The params after a step on each of the picks, ``[steps, size]``."""

    def loss(params, x, y):
        log = optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, x), y)
        return log.mean()

    def step(carry, rows):
        params, state = carry
        grads = jax.grad(loss)(params, images[rows], labels[rows])
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, picks)[0][0]


class Bench:
    """Data, the trained params and fresh ones, and the runs of one seed."""

    def __init__(self, on):
        self.params, images, test, test_labels = load()
        labels = np.load(data_file("mnist.npz"))["y_train"].astype("int32")
        self.images, self.labels = images[:-BESIDE], jnp.asarray(labels[:-BESIDE])
        self.beside = images[-BESIDE:], labels[-BESIDE:]
        if on == "test":
            self.beside = test, test_labels
        else:
            self.params = self.twin()
        self.listing = nt.sites(self.params, apply_fn, images[:8])

    def accuracy(self, params):
        """In percent."""
        x, y = self.beside
        return 100 * float((jnp.argmax(apply_fn(params, x), 1) == y).mean())

    def twin(self, steps=9000):
        """Params like the trained ones, which have seen all training images."""
        picks = np.random.default_rng(0).integers(0, len(self.images), (steps, SIZE))
        adam = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=1e-4)
        return train(adam, self.fresh(100), self.images, self.labels, picks)

    def fresh(self, seed):
        """Params before any training (He et al., 2015)."""
        leaves, tree = jax.tree.flatten(self.params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        normal = jax.nn.initializers.he_normal()
        return tree.unflatten(
            [
                normal(key, a.shape) if a.ndim == 2 else jnp.zeros_like(a)
                for key, a in zip(keys, leaves, strict=True)
            ]
        )

    def run(self, way, params, level, *, steps, rate, seed):
        """Accuracy and share of zeros of one way."""
        rng = np.random.default_rng(seed)
        picks = rng.integers(0, len(self.images), (steps, SIZE))
        schedule = optax.cosine_decay_schedule(rate, steps)
        adam = optax.adamw(schedule, weight_decay=1e-4)
        if isinstance(way, Kept):
            rows = self.images[rng.permutation(len(self.images))[:4096]]
            method = {name: way.method(one) for name, one in levels(level).items()}
            pruned = nt.prune(
                *(params, apply_fn, rows), method=method, mode="cascade", key=seed
            )
            params, optimizer = pruned.params, nt.keep_sparse(adam, pruned.mask)
        elif level is None:
            optimizer = way(rate, steps, self.listing)
        else:
            optimizer = way(adam, level, self.listing, steps)
        done = train(optimizer, params, self.images, self.labels, picks)
        matrices = [a for a in jax.tree.leaves(done) if a.ndim == 2]
        zeros = sum(float((a == 0).sum()) for a in matrices)
        return self.accuracy(done), zeros / sum(a.size for a in matrices)


def main():
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", choices=["beside", "test"], default="beside")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.9, 0.95, 0.98])
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 3000])
    parser.add_argument("--scratch-steps", type=int, default=3000)
    parser.add_argument("--rates", type=float, nargs="+", help="else the chosen ones")
    parser.add_argument("--ways", nargs="+", help="names that begin so; else all")
    parser.add_argument("--costs", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    bench = Bench(args.on)
    print("| start | way | zeros asked | steps | rate | zeros | accuracy, % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def row(start, name, way, level, steps):
        if args.ways and not name.startswith(tuple(args.ways)):
            return
        for rate in args.rates or [RATES[start, name, steps]]:
            runs = []
            for seed in range(args.seeds):
                params = bench.params if start == "trained" else bench.fresh(seed)
                runs.append(
                    bench.run(way, params, level, steps=steps, rate=rate, seed=seed)
                )
            right, zeros = zip(*runs, strict=True)
            each = " / ".join(f"{one:.2f}" for one in right)
            mean = f"{np.mean(right):.2f}" + (f" ({each})" if len(right) > 1 else "")
            asked = "-" if level is None else f"{level:.0%}"
            print(
                f"| {start} | {name} | {asked} | {steps} | {rate:g} "
                f"| {np.mean(zeros):.1%} | {mean} |",
                flush=True,
            )

    for steps in args.steps:
        for level in args.levels:
            for name, way in TRAINED.items():
                row("trained", name, way, level, steps)
        for strength in args.costs:
            name = f"connection cost {strength:g}"
            row("trained", name, costed(strength), None, steps)
    for name, way in SCRATCH.items():
        row("scratch", name, way, 0.95, args.scratch_steps)
    print(f"\nTrained: {bench.accuracy(bench.params):.2f} % ({args.on}).")


if __name__ == "__main__":
    main()
