"""Digests of what prunings answer: a change that is to change nothing shows it.

    python tests/freeze.py              # print one digest per configuration
    python tests/freeze.py --against REV  # and compare with those of another commit

A digest covers every bit of params, mask and report. Digests of two commits are
compared on one machine in one sitting: another device or version of JAX rounds
otherwise. Each commit runs in a process of its own; both share a cache of compiled
programs.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASES = {}


def case(name):
    """Registers a configuration: a function of the package that gives a tree."""

    def register(function):
        CASES[name] = function
        return function

    return register


def data(*shape, seed=0, dtype="float32"):
    """Normal numbers."""
    import numpy as np

    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def mlp(dtype="float32"):
    """A network of three layers with biases, its params and a batch."""
    import jax
    import jax.numpy as jnp

    dims = (12, 16, 16, 5)
    params = {
        f"l{i}": {
            "w": jnp.asarray(data(*shape, seed=i) * 2 / shape[0] ** 0.5, dtype),
            "b": jnp.asarray(data(shape[1], seed=10 + i) * 0.1, dtype),
        }
        for i, shape in enumerate(zip(dims, dims[1:], strict=False))
    }

    def apply_fn(params, x):
        for name in ("l0", "l1"):
            x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"])
        return x @ params["l2"]["w"] + params["l2"]["b"]

    return params, apply_fn, jnp.asarray(data(240, 12, seed=5), dtype)


def conv():
    """A convolutional network of Linen with batch norm, grouped and plain."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = nn.relu(nn.Conv(8, (3, 3), strides=2, feature_group_count=2)(x))
            return nn.Dense(4)(x.reshape(len(x), -1))

    net, x = Net(), jnp.asarray(data(24, 6, 6, 3, seed=6))
    params = jax.tree.map(
        lambda a: jnp.asarray(a) + 0.1 * data(*a.shape, seed=7), net.init(key(), x)
    )
    stats = jax.tree.map(lambda a: jnp.abs(a) + 0.5, params["batch_stats"])
    return {**params, "batch_stats": stats}, net.apply, x


def key():
    """A PRNG key."""
    import jax

    return jax.random.key(3)


def scanned():
    """A stack of equal layers that a scan runs, and a head."""
    import jax
    import jax.numpy as jnp

    params = {
        "stack": jnp.asarray(data(3, 10, 10, seed=8) * 0.5),
        "head": jnp.asarray(data(10, 4, seed=9) * 0.5),
    }

    def apply_fn(params, x):
        def step(x, w):
            return jax.nn.relu(x @ w), None

        x, _ = jax.lax.scan(step, x, params["stack"])
        return x @ params["head"]

    return params, apply_fn, jnp.asarray(data(160, 10, seed=4))


def tied():
    """An embedding that is the output layer, too."""
    import jax
    import jax.numpy as jnp

    params = {
        "embed": jnp.asarray(data(20, 8, seed=1)),
        "w": jnp.asarray(data(8, 8, seed=2)),
    }

    def apply_fn(params, tokens):
        x = jax.nn.relu(params["embed"][tokens] @ params["w"])
        return x @ params["embed"].T

    import numpy as np

    tokens = np.random.default_rng(0).integers(0, 20, (30, 6))
    return params, apply_fn, jnp.asarray(tokens)


def experts():
    """Two experts behind a router, their rows sorted by group."""
    import jax
    import jax.numpy as jnp

    params = {
        "in": jnp.asarray(data(6, 8, seed=1)),
        "experts": jnp.asarray(data(2, 8, 6, seed=2)),
    }

    def apply_fn(params, x):
        x = jax.nn.relu(x @ params["in"])
        order = jnp.argsort(x[:, 0] > 0.5)
        count = jnp.sum(x[:, 0] <= 0.5, dtype=jnp.int32)
        sizes = jnp.stack([count, len(x) - count])
        return jax.lax.ragged_dot(x[order], params["experts"], sizes)

    return params, apply_fn, jnp.asarray(data(96, 6, seed=3))


def simple(name, model, make, **settings):
    """A configuration that is one call of ``prune``."""

    def run(nt):
        method = make(nt)
        return nt.prune(*model(), method=method, **settings)

    CASES[name] = run


SIMPLE = {
    "nettrim": lambda nt: nt.NetTrim(),
    "nettrim-refit": lambda nt: nt.NetTrim(0.3, refit=True),
    "nettrim-rounds": lambda nt: nt.NetTrim(0.2, rounds=3),
    "nettrim-rounds-refit": lambda nt: nt.NetTrim(0.2, rounds=2, refit=True),
    "nettrim-fixed": lambda nt: nt.NetTrim(0.2, bias="fixed"),
    "nettrim-penalized": lambda nt: nt.NetTrim(0.2, bias="penalized"),
    "nettrim-box": lambda nt: nt.NetTrim(0.2, penalty=nt.Box(-0.9, 0.9)),
    "nettrim-elastic": lambda nt: nt.NetTrim(0.2, penalty=nt.ElasticNet(0.5)),
    "nettrim-group": lambda nt: nt.NetTrim(0.2, penalty=nt.GroupL1("inputs")),
    "sparsity": lambda nt: nt.Sparsity(0.7),
    "sparsity-column": lambda nt: nt.Sparsity(0.5, scope="column"),
    "nm": lambda nt: nt.NM(2, 4, pad=True),
    "blocks": lambda nt: nt.Blocks(0.5, (2, 2), pad=True),
    "neurons": lambda nt: nt.Neurons(0.25),
    "inputs": lambda nt: nt.Inputs(0.25),
    "reconstruct-settings": lambda nt: nt.Reconstruct(
        nt.Sparsity(0.6), ridge=0.1, plain=0.5, downstream=0.5, bias="fixed", steps=20
    ),
    "sparsegpt": lambda nt: nt.SparseGPT(nt.Sparsity(0.6)),
    "sparsegpt-nm": lambda nt: nt.SparseGPT(nt.NM(2, 4), block=8),
    "wanda": lambda nt: nt.Wanda(nt.Sparsity(0.6, scope="column")),
    "obd": lambda nt: nt.OBD(nt.Sparsity(0.6)),
    "magnitude": lambda nt: nt.Magnitude(nt.Sparsity(0.6)),
    "random": lambda nt: nt.Random(nt.Sparsity(0.6), seed=2),
    "mixed": lambda nt: {
        "l0": nt.NetTrim(0.2, rounds=2),
        "l1/w": nt.Wanda(nt.NM(2, 4)),
        ".*": nt.Sparsity(0.5),
    },
}
for _name, _make in SIMPLE.items():
    for _mode in ("parallel", "cascade"):
        if _mode == "parallel" or _name not in ("blocks", "inputs", "random"):
            simple(f"{_name}/{_mode}", mlp, _make, mode=_mode)
for _name in ("nettrim-refit", "sparsity", "sparsegpt"):
    simple(f"{_name}/float64", lambda: mlp("float64"), SIMPLE[_name])
    simple(f"{_name}/bfloat16", lambda: mlp("bfloat16"), SIMPLE[_name])
    simple(f"{_name}/conv", conv, SIMPLE[_name], mode="cascade", rows=300)
    simple(f"{_name}/scan", scanned, SIMPLE[_name])
    simple(f"{_name}/tied", tied, SIMPLE[_name], include=".*")
    simple(f"{_name}/experts", experts, SIMPLE[_name], on_failure="keep")
simple("sparsity/conv-parallel", conv, SIMPLE["nm"], rows=300, held_out=0)
simple("nettrim/conv-group", conv, SIMPLE["nettrim-group"], rows=300)
simple("magnitude/scan", scanned, SIMPLE["magnitude"], mode="cascade")
simple("nettrim/bound", mlp, SIMPLE["nettrim"], bound=True)
simple(
    "nettrim/infeasible",
    mlp,
    lambda nt: nt.NetTrim(0.01, penalty=nt.Nonnegative()),
    on_failure="keep",
)
simple("network/parallel", mlp, lambda nt: nt.Sparsity(0.7, scope="network"))
simple(
    "network/cascade",
    mlp,
    lambda nt: nt.Sparsity(0.7, scope="network"),
    mode="cascade",
)
simple("network/scan", scanned, lambda nt: nt.Sparsity(0.6, scope="network"))
simple(
    "network/magnitude",
    scanned,
    lambda nt: nt.Magnitude(nt.Sparsity(0.6, scope="network")),
)
simple(
    "network/mixed",
    mlp,
    lambda nt: {"l1": nt.NetTrim(0.2), ".*": nt.Wanda(nt.Sparsity(0.5, "network"))},
)
simple("deviation/parallel", mlp, lambda nt: nt.NetTrim(deviation=0.1))
simple("deviation/cascade", mlp, lambda nt: nt.NetTrim(deviation=0.1), mode="cascade")
simple(
    "deviation/mixed",
    mlp,
    lambda nt: {
        "l1": nt.Sparsity(0.1),
        ".*": nt.NetTrim(deviation=0.3, rounds=2, refit=True),
    },
)


@case("drop/parallel")
def _(nt):
    import jax.numpy as jnp

    params, apply_fn, x = mlp()
    labels = jnp.argmax(apply_fn(params, x), axis=1)

    def metric(params, batch):
        return jnp.mean(jnp.argmax(apply_fn(params, batch[0]), 1) == batch[1])

    method = nt.NetTrim(drop=0.1, metric=metric)
    return nt.prune(params, lambda p, b: apply_fn(p, b[0]), (x, labels), method=method)


@case("loader/parallel")
def _(nt):
    params, apply_fn, x = mlp()
    batches = [x[:100], x[100:200], x[200:]]
    return nt.prune(params, apply_fn, batches.__iter__(), method=nt.Sparsity(0.5))


@case("loader/cascade")
def _(nt):
    params, apply_fn, x = mlp()

    def weights(x):
        return (abs(x[:, 0]) < 1.5).astype("float32")

    return nt.prune(
        params,
        apply_fn,
        iter([x[:120], x[120:]]),
        mode="cascade",
        weights=weights,
        method={"l2": nt.Wanda(nt.NM(2, 4)), ".*": nt.NetTrim(0.2)},
    )


def refitted(mode, **settings):
    """A refit of a choice by magnitude."""

    def run(nt):
        params, apply_fn, x = mlp()
        magnitude = nt.Magnitude(nt.Sparsity(0.6))
        mask = nt.prune(params, apply_fn, x, method=magnitude).mask
        return nt.refit(params, mask, apply_fn, x, mode=mode, **settings)

    return run


CASES["refit/parallel"] = refitted("parallel")
CASES["refit/cascade"] = refitted("cascade", bias="fixed", held_out=0.2)


def transformed(transform, make, **settings):
    """A pruning within a transformation."""

    def run(nt):
        import jax
        import jax.numpy as jnp

        params, apply_fn, x = mlp()

        def pruned(params):
            return nt.prune(params, apply_fn, x, method=make(nt), **settings)

        if transform == "jit":
            return jax.jit(pruned)(params)
        both = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), params)
        return jax.vmap(pruned)(both)

    return run


CASES["jit/nettrim"] = transformed("jit", SIMPLE["nettrim"])
CASES["jit/sparsity"] = transformed("jit", SIMPLE["sparsity"])
CASES["jit/wanda"] = transformed("jit", SIMPLE["wanda"], mode="cascade")
CASES["vmap/nettrim"] = transformed("vmap", SIMPLE["nettrim"])
CASES["vmap/magnitude"] = transformed("vmap", SIMPLE["magnitude"])


@case("grad/epsilon")
def _(nt):
    import jax
    import jax.numpy as jnp

    params, apply_fn, x = mlp()

    def size(epsilon):
        new = nt.prune(params, apply_fn, x, method=nt.NetTrim(epsilon)).params
        return sum(jnp.sum(jnp.abs(a)) for a in jax.tree.leaves(new))

    return jax.grad(size)(0.2)


def digest(tree):
    """A hash of every leaf's dtype, shape and bits, and of reports as plain data."""
    import jax
    import numpy as np

    mark = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        if array.dtype.kind == "f" and np.isnan(array).all():
            continue  # no figure; it was a leaf in earlier reports
        mark.update(f"{array.dtype} {array.shape}".encode())
        mark.update(np.ascontiguousarray(array).tobytes())
    report = getattr(tree, "report", None)
    if report is not None:
        names = [(s.path, s.kind, s.response, s.shape, s.size) for s in report.sites]
        mark.update(json.dumps([names, list(report.skipped)]).encode())
        if not np.shape(report.deviation):
            mark.update(json.dumps(report.to_dict(), sort_keys=True).encode())
    return mark.hexdigest()[:16]


def digests(names):
    """One digest per configuration, printed as they come."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    from limits import free_mappings

    import nettrim_jax as nt

    for name in names:
        print(name, digest(CASES[name](nt)), flush=True)
        free_mappings()


def run(tree, names, cache):
    """The digests of the package in a folder, by a process of its own."""
    env = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, __file__, "--only", *names]
    answer = subprocess.run(
        command, env=env, cwd=tree, text=True, stdout=subprocess.PIPE, check=False
    )
    return dict(line.split() for line in answer.stdout.splitlines())


@dataclasses.dataclass
class Checkout:
    """Another commit's files in a folder of their own."""

    revision: str

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        archive = subprocess.run(
            ["git", "archive", self.revision], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(
            ["tar", "x", "-C", self.folder.name], input=archive.stdout, check=True
        )
        return self.folder.name

    def __exit__(self, *error):
        self.folder.cleanup()


def main():
    """Prints digests, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(CASES), metavar="NAME")
    parser.add_argument("--against", metavar="REV")
    parser.add_argument("--cache", help="folder of compiled programs that stays")
    given = parser.parse_args()
    names = [name for name in CASES if any(only in name for only in given.only)]
    if given.against is None:
        digests(names)
        return
    with Checkout(given.against) as old, tempfile.TemporaryDirectory() as cache:
        cache = given.cache or cache
        before, after = (run(tree, names, cache) for tree in (old, ROOT))
    other = [n for n in names if before.get(n) != after.get(n) or n not in after]
    for name in other:
        print(f"{name}: {before.get(name)} before, {after.get(name)} now")
    print(f"{len(names) - len(other)} of {len(names)} equal")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
