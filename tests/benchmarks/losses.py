"""LeNet-300-100 on MNIST: what rules keep that know the loss, or the outputs.

The same share of zeros in every layer, at most 70 % in the last one, or one number for
all of them; no retraining. ``OBD`` without labels, and with the cross-entropy of
training images; ``Fisher``, ``Saliency`` and ``Taylor`` with the same; magnitude and
Wanda know neither. Each mask also with the best values (``refit``). Run
``python tests/benchmarks/losses.py``; needs the data folder.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from mnist import apply_fn, load
from problems import data_file

import nettrim_jax as nt

LEVELS = (0.5, 0.8, 0.9)
LAST = 0.7  # the most of the last layer


def network(params, batch):
    """The logits of the images of a batch."""
    return apply_fn(params, batch[0])


def loss(params, batch):
    """Cross-entropy."""
    logs = jax.nn.log_softmax(network(params, batch))
    return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=1))


def rules(sizes):
    """The rules by name, each with the size of its batches; None for all images."""
    out = {
        "OBD": (nt.OBD, None),
        "OBD, cross-entropy": (lambda p: nt.OBD(p, loss), None),
        "Fisher": (lambda p: nt.Fisher(p, loss), None),
        "Saliency": (lambda p: nt.Saliency(p, loss), None),
    }
    for size in sizes:
        out[f"Taylor, batches of {size}"] = (lambda p: nt.Taylor(p, loss), size)
    return out | {"Wanda": (nt.Wanda, None), "magnitude": (nt.Magnitude, None)}


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 16])
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS)
    arguments = parser.parse_args()
    params, train, test, answers = load()
    labels = jnp.asarray(np.load(data_file("mnist.npz"))["y_train"].astype("int32"))
    pick = np.random.default_rng(0).permutation(len(train))[: arguments.rows]
    x, y = train[pick], labels[pick]

    def accuracy(params):
        return 100 * float((jnp.argmax(apply_fn(params, test), 1) == answers).mean())

    def batches(size):
        ends = range(size, len(x) + 1, size)
        return iter([(x[end - size : end], y[end - size : end]) for end in ends])

    def pruned(method, size):
        data = (x, y) if size is None else batches(size)
        start = time.perf_counter()
        new = nt.prune(params, network, data, method=method, progress=False)
        jax.block_until_ready(new)
        return new, time.perf_counter() - start

    print(f"Trained: {accuracy(params):.2f} % on the test images.\n")
    print("| zeros | rule | as it came | best values | one number for all | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for level in arguments.levels:
        for name, (rule, size) in rules(arguments.sizes).items():
            last = rule(nt.Sparsity(min(level, LAST)))
            method = {"Dense_2": last, ".*": rule(nt.Sparsity(level))}
            new, seconds = pruned(method, size)
            fitted = nt.refit(params, new.mask, network, (x, y), mode="cascade")
            every = "–"
            # the others would be split by a search, which is another matter
            if not name.startswith(("Taylor", "Wanda")):
                whole = rule(nt.Sparsity(level, scope="network"))
                every = f"{accuracy(pruned(whole, size)[0].params):.2f}"
            print(
                f"| {100 * level:.0f} % | {name} | {accuracy(new.params):.2f} "
                f"| {accuracy(fitted.params):.2f} | {every} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
