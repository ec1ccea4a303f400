"""The size of a file without one is that of the file."""

import jax
import numpy as np
import pytest
import stored

import nettrim_jax as nt
from nettrim_jax.files.sizes import Sizes


def tree(rng):
    W = stored.weights((60, 40), rng)
    return {
        "few": stored.shared(stored.sparse(W, 0.8, rng), 7),
        "dense": W,
        "half": stored.sparse(W, 0.9, rng).astype(np.float16),
        "count": np.int32(3),
        "name": "no array",
        "none": np.zeros((0, 4), bool),
        "small": np.arange(5.0),
    }


def size(path, params):
    nt.save(path / "file", params)
    return (path / "file").stat().st_size


def test_the_size_is_that_of_the_file(tmp_path, rng):
    params = tree(rng)
    sizes = Sizes(params)
    assert sizes({}) == size(tmp_path, params)
    names = [name for name, leaf in sorted(params.items()) if name != "name"]
    for name, other in [
        ("dense", stored.sparse(params["dense"], 0.95, rng)),
        ("few", params["dense"]),
        ("small", np.zeros(5)),
    ]:
        changed = {names.index(name): other}
        assert sizes(changed) == size(tmp_path, {**params, name: other})
    assert sizes({}) == size(tmp_path, params)


def test_of_one_array_and_of_a_result(tmp_path, rng):
    W = stored.sparse(stored.weights((20, 10), rng), 0.5, rng)
    assert Sizes(W)({}) == size(tmp_path, W)
    x = jax.numpy.asarray(stored.weights((50, 20), rng))
    done = nt.prune(W, lambda w, x: x @ w, x, method=nt.Magnitude(nt.Sparsity(0.7)))
    assert Sizes(done)({}) == size(tmp_path, done)


def test_what_cannot_be_saved_has_no_size():
    with pytest.raises(nt.results.ParamsError, match="save: w is object"):
        Sizes({"w": np.array([None])})
