"""LeNet-300-100 on MNIST: what the try-and-learn agent removes within three bounds.

The metric is the accuracy on some of the training images; the test images are looked
at once per bound. The network was trained on the former, so with ``--unseen`` it is
that on some of the test images, and the others are looked at. Nothing is retrained. Run
``python tests/benchmarks/agent.py``; needs the data folder.
"""

import argparse
import time

import jax.numpy as jnp
import numpy as np
from mnist import apply_fn, load
from problems import data_file

import nettrim_jax as nt


def logits(params, batch):
    """The network, on a batch of images and labels."""
    return apply_fn(params, batch[0])


def accuracy(params, batch):
    """The share of right answers."""
    right = jnp.argmax(logits(params, batch), axis=1) == batch[1]
    return jnp.mean(right, dtype=jnp.float32)


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.005, 0.01, 0.02])
    arguments = parser.parse_args()
    params, train, test, answers = load()
    labels = np.load(data_file("mnist.npz"))["y_train"].astype("int32")
    answers = answers.astype("int32")
    source = (test, answers) if arguments.unseen else (train, labels)
    order = np.random.default_rng(arguments.seed).permutation(len(source[0]))
    pick, rest = order[: arguments.rows], order[arguments.rows :]
    validation = tuple(jnp.asarray(a[pick]) for a in source)
    tested = tuple(
        jnp.asarray(a[rest] if arguments.unseen else a) for a in (test, answers)
    )
    structure = nt.units(params, logits, validation)
    full = [float(accuracy(params, batch)) for batch in (validation, tested)]
    print(
        f"Trained: {100 * full[0]:.2f} % of {arguments.rows} images are right, ", end=""
    )
    print(f"{100 * full[1]:.2f} % of {len(tested[0])} others.\n")
    names = " | ".join(f"of {group.count} units" for group in structure.groups)
    print(f"| bound | fall there | fall on others | removed {names} | seconds |")
    print("| --- " * (4 + len(structure.groups)) + "|")
    for bound in arguments.bounds:
        method = nt.TryAndLearn(accuracy, bound, seed=arguments.seed)
        start = time.perf_counter()
        pruned = nt.prune(params, logits, validation, method=method)
        seconds = time.perf_counter() - start
        small = nt.shrink(pruned, logits, validation)
        falls = [
            before - float(jnp.mean(small.apply_fn(small.params, batch).argmax(1) == y))
            for before, batch, y in zip(
                full, (validation, tested), (validation[1], tested[1]), strict=True
            )
        ]
        gone = [group.count - len(small.kept[group.name]) for group in structure.groups]
        row = [f"{bound:g}", *(f"{fall:.4f}" for fall in falls), *map(str, gone)]
        print(f"| {' | '.join(row)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
