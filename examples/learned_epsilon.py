"""Learn one epsilon per layer through the solver, and compare with one for all.

Run ``python examples/learned_epsilon.py``; it takes under three minutes on two cores.

A network for scikit-learn's digits is trained, and pruned in parallel mode. Adam from
optax moves the logarithms of the layers' epsilons towards fewer links at the same loss
on validation rows, by derivatives of the pruning itself.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import nettrim_jax as nt

WIDTHS = (64, 100, 60, 10)
LAYERS = [f"layer{i}" for i in range(len(WIDTHS) - 1)]
SOLVER = nt.ADMM(tol=1e-4)
# of the layer's root mean square weight: the weight that counts as half a link
HALF = 0.1
# of the augmented Lagrangian, whose goals are logarithms
PENALTY, RISE = 2.0, 0.3


def apply_fn(params, x):
    """64-100-60-10 with ReLU."""
    for name in LAYERS[:-1]:
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params[LAYERS[-1]]["kernel"] + params[LAYERS[-1]]["bias"]


def loss(params, rows):
    """Mean cross entropy."""
    x, y = rows
    logits = apply_fn(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params, rows):
    """In percent."""
    x, y = rows
    return 100 * float(jnp.mean(jnp.argmax(apply_fn(params, x), axis=1) == y))


def data(seed=0):
    """1000 rows to train and prune on, 400 for validation, 397 for the test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x, y = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    return [(x[a:b], y[a:b]) for a, b in ((0, 1000), (1000, 1400), (1400, None))]


def train(rows, seed=0, steps=2000):
    """AdamW on random batches, the whole run compiled."""
    keys = jax.random.split(jax.random.key(seed), len(LAYERS))
    params = {
        name: {
            "kernel": jax.random.normal(key, (d_in, d_out)) * (2 / d_in) ** 0.5,
            "bias": jnp.zeros(d_out),
        }
        for name, key, d_in, d_out in zip(
            LAYERS, keys, WIDTHS[:-1], WIDTHS[1:], strict=True
        )
    }
    optimizer = optax.adamw(3e-3, weight_decay=0.3)

    def step(carry, key):
        params, state = carry
        drawn = jax.random.randint(key, (128,), 0, len(rows[0]))
        grads = jax.grad(loss)(params, jax.tree.map(lambda a: a[drawn], rows))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(seed + 1), steps)
    start = (params, optimizer.init(params))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])(start)


def pruner(params, x):
    """From the logarithms of the epsilons to weights, links and result codes."""

    def prune(logs):
        method = {
            name: nt.NetTrim(epsilon=jnp.exp(log))
            for name, log in zip(LAYERS, logs, strict=True)
        }
        pruned = nt.prune(
            params, apply_fn, x, method=method, solver=SOLVER, held_out=0.0
        )
        sites = pruned.report.sites
        links = jnp.stack([site.nonzeros for site in sites])
        return pruned.params, (links, jnp.stack([site.result for site in sites]))

    return prune


def smooth_links(params, trained):
    """A count of the links that has derivatives."""
    total = 0.0
    for name in LAYERS:
        W, W0 = params[name]["kernel"], trained[name]["kernel"]
        total += jnp.sum(W**2 / (W**2 + HALF**2 * jnp.mean(W0**2)))
    return total


def slopes(prune, trained, validation):
    """Logarithms of loss and smooth links, and both their gradients.

    In parallel mode a layer's weights depend on its own epsilon alone. So one forward
    derivative in the direction of all epsilons has every layer's, and each layer's
    share of the network's derivative comes by the chain rule.
    """

    def goals(params):
        links = smooth_links(params, trained)
        return jnp.log(jnp.stack([loss(params, validation), links]))

    def evaluate(logs):
        pruned, moves, (links, codes) = jax.jvp(
            prune, (logs,), (jnp.ones_like(logs),), has_aux=True
        )
        values, back = jax.vjp(goals, pruned)

        def gradient(row):
            (by,) = back(row)
            parts = jax.tree.map(lambda g, move: jnp.sum(g * move), by, moves)
            return jnp.stack([sum(jax.tree.leaves(parts[name])) for name in LAYERS])

        return values, jnp.stack([gradient(row) for row in jnp.eye(2)]), links, codes

    return jax.jit(evaluate)


def learn(evaluate, logs, limit, steps):
    """Fewest links with the loss at the limit, by an augmented Lagrangian.

    A derivative that is not known is NaN. That layer stays where it is for that step,
    and it is counted.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, steps, alpha=0.1))
    state, multiplier, unknown = optimizer.init(logs), jnp.ones(()), 0
    for number in range(steps):
        values, rows, links, codes = evaluate(logs)
        over = values[0] - jnp.log(limit)
        weight = jnp.maximum(multiplier + PENALTY * over, 0)
        gradient = rows[1] + weight * rows[0]
        known = jnp.isfinite(gradient) & (codes == nt.results.CONVERGED)
        unknown += int(jnp.sum(~known))
        updates, state = optimizer.update(jnp.where(known, gradient, 0), state)
        logs = jnp.where(known, optax.apply_updates(logs, updates), logs)
        multiplier = jnp.maximum(multiplier + RISE * over, 0)
        if number % 5 == 0 or number == steps - 1:
            epsilons = " ".join(f"{float(e):.3f}" for e in jnp.exp(logs))
            print(
                f"step {number:2d}: {int(links.sum())} links, loss "
                f"{float(jnp.exp(values[0])):.4f}, epsilons now {epsilons}"
            )
    return logs, unknown


def meet(prune, logs, validation, limit, halvings=9):
    """The largest common factor on the epsilons at which the loss meets the limit."""
    low, high = -1.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        pruned, _ = prune(logs + middle)
        good = loss(pruned, validation) <= limit
        low, high = (middle, high) if good else (low, middle)
    pruned, (links, codes) = prune(logs + low)
    if (codes != nt.results.CONVERGED).any():
        raise RuntimeError(f"a solve did not converge: codes {codes}")
    return logs + low, pruned, links


def main():
    """Train, learn, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratio", type=float, default=2.5, help="loss to bear, times")
    parser.add_argument("--rows", type=int, default=400, help="to prune on")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    training, validation, test = data(arguments.seed)
    params = train(training, arguments.seed)
    prune = pruner(params, training[0][: arguments.rows])
    compiled = jax.jit(prune)
    limit = arguments.ratio * float(loss(params, validation))
    size = sum(params[name]["kernel"].size for name in LAYERS)
    print(f"{size} links, validation loss {limit / arguments.ratio:.4f}")
    print(f"to bear: {limit:.4f}\n")

    start = jnp.full(len(LAYERS), jnp.log(0.1))
    same = meet(compiled, start, validation, limit)
    evaluate = slopes(prune, params, validation)
    logs, unknown = learn(evaluate, same[0], limit, arguments.steps)
    learned = meet(compiled, logs, validation, limit)
    print(f"{unknown} of {arguments.steps * len(LAYERS)} derivatives unknown\n")

    print("| epsilons | links | by layer | validation loss | test loss | test % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (at, pruned, links) in (("one for all", same), ("learned", learned)):
        epsilons = " ".join(f"{float(e):.3f}" for e in jnp.exp(at))
        by_layer = " ".join(str(int(n)) for n in links)
        print(
            f"| {name}: {epsilons} | {int(links.sum())} | {by_layer} "
            f"| {float(loss(pruned, validation)):.4f} "
            f"| {float(loss(pruned, test)):.4f} | {accuracy(pruned, test):.1f} |"
        )
    before = float(loss(params, test)), accuracy(params, test)
    print(f"\ntrained: test loss {before[0]:.4f}, {before[1]:.1f} %")
    fewer = 1 - int(learned[2].sum()) / int(same[2].sum())
    print(f"learned epsilons leave {100 * fewer:.1f} % fewer links")


if __name__ == "__main__":
    main()
