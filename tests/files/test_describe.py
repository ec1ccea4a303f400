"""What a file has, as a table and as plain data."""

import json

import numpy as np
import stored

import nettrim_jax as nt


def test_the_table_and_the_data(tmp_path, rng):
    W = stored.two_of_four(stored.weights((64, 48), rng), rng)
    layer = {"kernel": W, "bias": stored.array("uint8", (48,), rng)}
    path = tmp_path / "file"
    nt.save(path, {"layer": layer, "scale": np.float32(2)})
    found = nt.describe(path)
    text = str(found)
    assert all(len(line) <= 100 for line in text.splitlines())
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert lines["leaf"] == "shape dtype zeros as bytes in file ratio".split()
    assert lines["scale"][:5] == ["scalar", "float32", "0.0%", "dense", "4"]
    kernel = lines["layer/kernel"]
    assert kernel[:4] == ["64x48", "float32", "50.0%", "2:4"]
    assert found.bytes == path.stat().st_size
    stated = sum(leaf.stored_bytes for leaf in found.leaves)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert found.bytes == start + stated
    assert found.ratio == (4 * 64 * 48 + 48 + 4) / found.bytes
    data = json.loads(json.dumps(found.to_dict()))
    assert data["bytes"] == found.bytes
    [row] = [one for one in data["leaves"] if one["path"].endswith("kernel")]
    assert row["encoding"] == "2:4" and row["nonzeros"] == 64 * 24
    assert row["raw_bytes"] == 4 * 64 * 48 > row["bytes"] > 3 * 64 * 24


def test_zeros_of_every_kind(tmp_path):
    tree = {
        "none": np.zeros((0, 3)),
        "signs": np.array([0.0, -0.0, np.nan]),
        "all": np.zeros(5000),
        "complex": np.array([0, 1j, 1, 1 + 1j]),
    }
    nt.save(tmp_path / "file", tree)
    found = {leaf.path: leaf for leaf in nt.describe(tmp_path / "file").leaves}
    assert {path: leaf.nonzeros for path, leaf in found.items()} == {
        "none": 0,
        "signs": 2,
        "all": 0,
        "complex": 3,
    }
    assert found["all"].sparsity == 1 and found["none"].sparsity == 0
    assert "-" in str(nt.describe(tmp_path / "file"))
