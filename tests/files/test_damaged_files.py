"""Files with random changes: an error, or the exact original."""

import resource

import numpy as np
import pytest
import stored

import nettrim_jax as nt
from nettrim_jax.results import FileError

MEMORY = 64 * 2**20


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A file with leaves of several kinds, and these."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    return path, stored.good(path)


def mutate(file, rng):
    """The file with something changed at random."""
    out = bytearray(file)
    kind, at = rng.integers(8), int(rng.integers(len(out)))
    if rng.random() < 0.5:  # as often in the header, which is the smaller part
        at = int(rng.integers(8 + int.from_bytes(file[:8], "little")))
    if kind < 3:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        out[at] = int(rng.integers(256))
    elif kind == 4:
        del out[at : at + int(rng.integers(1, 9))]
    elif kind == 5:
        out[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 6:
        size = int(rng.integers(1, 64))
        source = int(rng.integers(len(out)))
        out[at : at + size] = out[source : source + size]
    else:
        out[at : at + 16] = bytes(len(out[at : at + 16]))
    return bytes(out)


def mutations(good, tmp_path, count, seed):
    path, tree = good
    file, changed = path.read_bytes(), tmp_path / "changed"
    leaves = {leaf.path for leaf in nt.describe(path).leaves}
    assert leaves == {"dense", "sparse/kernel", "nm", "shared", "flags"}
    rng, exact = np.random.default_rng(seed), 0
    for _ in range(count):
        mutant = mutate(file, rng)
        changed.write_bytes(mutant)
        try:
            back = nt.load(changed, like=tree)
        except FileError:
            continue
        exact += mutant != file
        same = [
            stored.same(back[name], tree[name]) for name in tree if name != "sparse"
        ]
        assert all(same)
        assert stored.same(back["sparse"]["kernel"], tree["sparse"]["kernel"])
    return exact


def test_mutations(good, tmp_path):
    # bits behind the end of a code are those that may differ
    assert mutations(good, tmp_path, 300, 0) < 15


@pytest.mark.slow
def test_ten_thousand_mutations(good, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert mutations(good, tmp_path, 10_000, 1) < 500
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 1024 * (after - before) < MEMORY


@pytest.mark.slow
def test_changes_behind_right_digests_of_the_header(good, tmp_path):
    # an attacker signs the header anew: then the leaves' own digests are the check
    texts, tensors, data = stored.parts(good[0])
    rng, words = np.random.default_rng(2), []
    for _ in range(2000):
        said = {"texts": dict(texts), "data": data}
        if rng.random() < 0.5:
            said["data"] = mutate(b"\0" * 8 + data, rng)[8:].ljust(len(data), b"\0")
            said["data"] = said["data"][: len(data)]
        else:
            keys = [key for key in texts if key.startswith("leaf:")]
            key = keys[int(rng.integers(len(keys)))]
            text = bytearray(texts[key].encode())
            text[int(rng.integers(len(text)))] = int(rng.integers(32, 127))
            said["texts"][key] = text.decode()
        stored.forge(tmp_path / "changed", said["texts"], tensors, said["data"])
        try:
            back = nt.load(tmp_path / "changed")
        except FileError as error:
            words.append(str(error))
            continue
        flat = {"/".join(leaf.keys): leaf for leaf in nt.describe(good[0]).leaves}
        for path in flat:
            one = back
            for key in path.split("/"):
                one = one[key] if key in one else None
                if one is None:
                    break
            original = good[1]
            for key in path.split("/"):
                original = original[key]
            if one is not None and one.dtype == original.dtype:
                assert one.tobytes() == original.tobytes()
    assert len(words) > 1500
