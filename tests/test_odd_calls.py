"""Odd calls: a right result, or an error of the library that says where.

Types, shapes, scales from 1e-30 to 1e15, half precision, zeros from before, empty and
single rows, drawn at random.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nettrim_jax as nt

SEEDS = 200
OFTEN = 2  # of the fast set
D = 8
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": jax.nn.gelu,
    "none": lambda z: z,
    "tanh": jnp.tanh,
}
METHODS = {
    "nettrim-0": nt.NetTrim(epsilon=0.0),
    "nettrim": nt.NetTrim(epsilon=0.2),
    "nettrim-refit": nt.NetTrim(epsilon=0.2, refit=True),
    "sparsity-0": nt.Sparsity(0.0),
    "sparsity": nt.Sparsity(0.5),
    "sparsity-1": nt.Sparsity(1.0),
    "nm": nt.NM(2, 4),
    "blocks": nt.Blocks(0.5, (2, 2)),
    "neurons": nt.Wanda(nt.Neurons(0.5)),
    "sparsegpt": nt.SparseGPT(nt.Sparsity(0.5)),
    "layerobs": nt.LayerOBS(nt.Sparsity(0.5)),
    "wanda": nt.Wanda(nt.Sparsity(0.5)),
    "magnitude": nt.Magnitude(nt.Sparsity(0.5)),
    "random": nt.Random(nt.Sparsity(0.5), seed=1),
}
# the number of weights of a matrix that are left, at most
LEFT = {"sparsity-0": 1.0, "sparsity-1": 0.0}


def pick(rng, *values, odds=None):
    return values[rng.choice(len(values), p=odds)]


def draw(seed):
    """Params, a network, a batch and settings."""
    rng = np.random.default_rng(seed)
    dtype = pick(
        rng, "float32", "float64", "float16", "bfloat16", odds=[0.55, *[0.15] * 3]
    )
    params, depth = {}, pick(rng, 1, 2, 3)
    for k in range(depth):
        w = rng.normal(size=(D, D)) / 2 * pick(rng, 1, 1, 1, 1e-30, 1e-4, 1e4)
        share = pick(rng, 0, 0.5, 0.95, 1, odds=[0.6, 0.2, 0.1, 0.1])
        w = np.where(rng.random(w.shape) < share, 0, w)
        params[f"w{k}"] = (
            jnp.asarray(w, dtype) if dtype == "bfloat16" else w.astype(dtype)
        )
        if rng.random() < 0.5:
            params[f"b{k}"] = np.zeros(D, "float32")
    if rng.random() < 0.3:
        params |= {"step": np.int64(3), "name": "net", "scale": np.float32(2)}
    if rng.random() < 0.2:
        params["empty"] = np.zeros((0, D), "float32")
    if rng.random() < 0.5 and dtype != "bfloat16":
        params = jax.tree.map(lambda a: jnp.asarray(a) if np.ndim(a) else a, params)
    name = pick(rng, *ACTIVATIONS)

    def apply_fn(p, x):
        with jax.numpy_dtype_promotion("standard"):
            for k in range(depth):
                x = x.astype(jnp.float32) @ p[f"w{k}"].astype(jnp.float32)
                x = x + p[f"b{k}"][None, :] if f"b{k}" in p else x
                x = ACTIVATIONS[name](x)
        return x

    n = pick(rng, 0, 1, 2, 9, 40, odds=[0.05, 0.1, 0.15, 0.2, 0.5])
    x = rng.normal(size=(n, D)) * pick(rng, 1, 1, 1, 1e-30, 1e-15, 1e-6, 1e6, 1e15)
    x = x.astype(pick(rng, "float32", "float32", "float64", "float16", "int32", "bool"))
    if x.dtype.kind == "f" and x.size and rng.random() < 0.1:
        x[0, 0] = pick(rng, np.nan, np.inf)
    settings = {
        "mode": pick(rng, "parallel", "cascade"),
        "held_out": pick(rng, 0.0, 0.1, 0.9),
        "rows": pick(rng, 1, 7, 4096),
        "key": pick(rng, 0, np.int32(5), jax.random.key(2)),
    }
    if rng.random() < 0.2:
        settings["weights"] = (np.arange(n) < pick(rng, n, n - 1, 1)).astype("float32")
    if rng.random() < 0.2:
        settings["exclude"] = "w0"
    method = pick(rng, *METHODS)
    return params, apply_fn, x, method, settings


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(k, marks=() if k < OFTEN else pytest.mark.slow)
        for k in range(SEEDS)
    ],
)
@np.errstate(all="ignore")
def test_an_odd_call(seed):
    params, apply_fn, x, method, settings = draw(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pruned = nt.prune(params, apply_fn, x, method=METHODS[method], **settings)
        except nt.NetTrimError as error:
            places = (
                "w0",
                "w1",
                "w2",
                "batch",
                "params",
                "weights",
                "apply_fn",
                "array",
            )
            assert any(place in str(error) for place in places), error
            return
    assert jax.tree.structure(pruned.params) == jax.tree.structure(params)
    taken = {site.path: site for site in pruned.report.sites}
    for name, leaf in params.items():
        new, mask = pruned.params[name], pruned.mask[name]
        if not hasattr(leaf, "dtype"):
            assert new is leaf
            continue
        assert (new.shape, new.dtype) == (leaf.shape, leaf.dtype)
        old, new = (np.asarray(a).astype("float64") for a in (leaf, new))
        assert np.isfinite(new).all()
        if name not in taken:
            # a bias moves with its layer
            assert name[0] == "b" or np.array_equal(new, old)
            continue
        site, mask = taken[name], np.asarray(mask)
        assert not new[~mask].any()
        assert int(site.kept) == mask.sum() and int(site.nonzeros) == np.count_nonzero(
            new
        )
        assert int(site.result) in nt.results.GOOD
        zero = not old.any()
        if not zero:  # what was zero stays zero
            assert not (new != 0)[old == 0].any()
        if method.startswith("nettrim"):
            continue
        rows = x.shape[0] and ("weights" not in settings or settings["weights"].any())
        want = round(LEFT.get(method, 0.5) * new.size)
        most = want if zero else min(want, np.count_nonzero(old))
        assert rows and int(site.kept) <= want
        if method not in ("nm", "blocks", "neurons"):
            assert int(site.kept) == most
