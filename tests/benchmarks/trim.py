"""Rounds of choosing units, removing them and training again, on real networks.

``lenet``: a convolutional LeNet (20 and 50 channels, 500 units) is trained on MNIST,
then loses the units with most zeros in rounds, as Network Trimming does (Hu et al.,
2016). ``resnet``: ResNet-20 on CIFAR-10 loses hidden channels of its blocks in rounds,
each a share of the multiply-adds, by ``Taylor`` (Molchanov et al., 2017) and by ``L1``,
with the same training in between. Settings were fixed on training images that are left
aside; the test images are looked at once. Needs the data folder. From the root:

    python tests/benchmarks/trim.py lenet --test
    python tests/benchmarks/trim.py resnet --test
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from units import a_resnet, accuracy, data_file, on_x

import nettrim_jax as nt


def lenet_params(seed):
    """Random params of a convolutional LeNet."""
    shapes = [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        f"l{k}": {
            "w": jax.random.normal(key, shape) * (2 / np.prod(shape[:-1])) ** 0.5,
            "b": jnp.zeros(shape[-1]),
        }
        for k, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def lenet(params, x):
    """Logits of images ``[b, 28, 28, 1]``."""
    for k in range(2):
        w, b = params[f"l{k}"]["w"], params[f"l{k}"]["b"]
        layout = "NHWC", "HWIO", "NHWC"
        x = jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=layout
        )
        x = jax.nn.relu(x + b)
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(x @ params["l2"]["w"] + params["l2"]["b"])
    return x @ params["l3"]["w"] + params["l3"]["b"]


def loss_of(apply_fn):
    """The cross-entropy of a network on images with labels."""

    def loss(params, batch):
        logits = apply_fn(params, batch)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return each.mean()

    return loss


def trainer(data, steps, rate, size, frozen=(), seed=0):
    """``train(params, apply_fn)``: so many steps of Adam, to a rate of nothing."""

    def train(params, apply_fn):
        labels = {name: "still" if name in frozen else "moves" for name in params}
        adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
        optimizer = optax.multi_transform(
            {"moves": adam, "still": optax.set_to_zero()}, labels
        )
        loss = loss_of(apply_fn)

        @jax.jit
        def step(params, state, batch):
            slopes = jax.grad(loss)(params, batch)
            updates, state = optimizer.update(slopes, state, params)
            return optax.apply_updates(params, updates), state

        rng, state = np.random.default_rng(seed), optimizer.init(params)
        x, y = data
        for _ in range(steps):
            pick = rng.integers(len(y), size=size)
            params, state = step(params, state, (x[pick], jnp.asarray(y[pick])))
        return params

    return train


def run_lenet(args):
    """Trains, trims by APoZ, and prints the rounds."""
    mnist = np.load(data_file("mnist.npz"))
    x, tests = (
        jnp.asarray(mnist[name][..., None] / 255, jnp.float32)
        for name in ("x_train", "x_test")
    )
    y = mnist["y_train"]
    rest, aside = (x[:-5000], y[:-5000]), (x[-5000:], y[-5000:])
    test = tests, mnist["y_test"]
    call = on_x(lenet)
    params = trainer(rest, args.steps * 2, 1e-3, 64)(lenet_params(0), call)

    def right(params, apply_fn, data=aside):
        network = jax.jit(lambda p, x: apply_fn(p, (x, None)))
        return accuracy(network, params, data)

    batch = rest[0][:2048], jnp.asarray(rest[1][:2048])
    trimmed = nt.trim(
        *(params, call, batch, nt.Units(args.share, by=nt.APoZ(), refit=False)),
        until=lambda round: round.parameters.share < 1 / 3,
        train=trainer(rest, args.steps, 1e-3, 64, seed=1),
        metric=right,
    )
    print(trimmed)
    if args.test:
        print(f"test, trained: {right(params, call, test):.2f} %")
        print(f"test, trimmed: {right(trimmed.params, trimmed.apply_fn, test):.2f} %")


def run_resnet(args):
    """Trims by Taylor and by L1 to the same multiply-adds, and prints both."""
    params, call, train, aside = a_resnet("aside")
    test = a_resnet("test")[3] if args.test else aside
    batch = jnp.asarray(train[0][:512]), jnp.asarray(train[1][:512])

    def right(params, apply_fn, data=aside):
        network = jax.jit(lambda p, x: apply_fn(p, (x, None)))
        return accuracy(network, params, data)

    criteria = {
        "Taylor": lambda apply_fn: nt.Taylor(loss_of(apply_fn)),
        "L1": lambda apply_fn: nt.L1(),
    }
    if args.test:
        print(f"test, trained: {right(params, on_x(call), test):.2f} %")
    for name, by in criteria.items():
        began = time.process_time()

        def method(number, apply_fn, by=by):
            units = nt.Units(
                args.share,
                by=by(apply_fn),
                scope="network",
                of="multiply-adds",
                refit=False,
            )
            return {r"layer._./conv1": units, ".*": None}

        trimmed = nt.trim(
            *(params, on_x(call), batch, method),
            until=args.rounds,
            train=trainer(train, args.steps, 1e-3, 64, ("batch_stats",)),
            metric=right,
        )
        print(f"\n{name}")
        print(trimmed)
        print(f"{time.process_time() - began:.0f} CPU s", flush=True)
        if args.test:
            score = right(trimmed.params, trimmed.apply_fn, test)
            print(f"test, trimmed: {score:.2f} %", flush=True)


def main():
    """Prints the rounds of one network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=["lenet", "resnet"])
    parser.add_argument("--share", type=float, help="of the units, or multiply-adds")
    parser.add_argument("--steps", type=int, help="of training, each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--test", action="store_true", help="look at test images")
    args = parser.parse_args()
    share, steps = {"lenet": (0.3, 2000), "resnet": (0.15, 100)}[args.network]
    args.share = share if args.share is None else args.share
    args.steps = steps if args.steps is None else args.steps
    (run_lenet if args.network == "lenet" else run_resnet)(args)


if __name__ == "__main__":
    main()
