"""What is loaded has the bits of what was saved, and others can read it."""

import math

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import reader
import stored

import nettrim_jax as nt
from nettrim_jax.files.dtypes import CODES, DTYPES

NAMES = nt.files.encoding.NAMES
SHAPES = [(), (0,), (1,), (7,), (3, 0), (5, 24), (2, 3, 4, 5)]
FORMS = [
    NAMES,
    (),
    ("bitmask",),
    ("gaps", "codes", "huffman"),
    ("nm", "blocks", "zlib"),
]


def round_trip(tmp_path, tree, encodings=NAMES):
    """What ``load`` gives, after the other reader has read the same."""
    path = tmp_path / "file"
    nt.save(path, tree, encodings=encodings)
    theirs = reader.read(path)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    for keys, leaf in leaves:
        name = jax.tree_util.keystr(keys, simple=True, separator="/") or "params"
        assert stored.same(theirs[name], leaf), name
    assert len(theirs) == len(leaves)
    return nt.load(path)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_with_any_bits(tmp_path, rng, name):
    arrays = {str(shape): stored.array(name, shape, rng) for shape in SHAPES}
    some = {k: stored.sparse(a, 0.8, rng) for k, a in arrays.items()}
    tree = {"all": arrays, "sparse": some}
    back = round_trip(tmp_path, tree)
    assert jax.tree.all(jax.tree.map(stored.same, back, tree))


@pytest.mark.parametrize("encodings", FORMS, ids=len)
def test_every_kind_by_every_form(tmp_path, rng, encodings):
    tree = stored.kinds(rng)
    back = round_trip(tmp_path, tree, encodings)
    assert {k for k in tree if not stored.same(back[k], tree[k])} == set()


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60, deadline=None, database=None)
def test_any_array(tmp_path_factory, data):
    name = data.draw(st.sampled_from(["float32", "uint8", "float64", "bfloat16"]))
    shape = data.draw(hypothesis.extra.numpy.array_shapes(min_dims=0, max_side=9))
    size = DTYPES[name].itemsize
    # few bit patterns and long stretches of zeros, where forms have their edges
    few = data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1))
    few.append(bytes(size))
    count = math.prod(shape)
    picks = st.lists(st.sampled_from(few), min_size=count, max_size=count)
    raw = b"".join(data.draw(picks))
    array = np.frombuffer(raw, DTYPES[name]).reshape(shape)
    back = round_trip(tmp_path_factory.mktemp("any"), array)
    assert stored.same(back, array)


WANTED = {
    "dense": "dense",
    "planes": "planes",
    "two_of_four": "2:4",
    "of_four_across": "2:4",
    "blocks": "blocks 4x4",
    "ragged_blocks": "blocks 8x8",
    "rows": "blocks 1x80",
    "units": "blocks 60x1",
    "shared_everywhere": "32 codes",
    "zeros": "bitmask",
    "one": "dense",
    "scalar": "dense",
    "empty": "dense",
}


def test_the_smallest_form_is_chosen(tmp_path, rng):
    tree = stored.kinds(rng)
    nt.save(tmp_path / "all", tree)
    found = {leaf.path: leaf for leaf in nt.describe(tmp_path / "all").leaves}
    assert {k: found[k].encoding for k in WANTED} == WANTED
    assert found["shared"].encoding.endswith("+ 16 codes")
    for name in ("shared_by_unit", "shared_by_row"):
        assert "codes each" in found[name].encoding
    nt.save(tmp_path / "dense", tree, encodings=())
    for encodings in (("bitmask",), ("gaps", "codes", "huffman"), ("codes", "lzma")):
        nt.save(tmp_path / "some", tree, encodings=encodings)
        for leaf in nt.describe(tmp_path / "some").leaves:
            # of the bytes only, without what the header has more
            assert found[leaf.path].stored_bytes <= leaf.stored_bytes + 180, leaf
            assert leaf.stored_bytes <= leaf.raw_bytes


def test_patterns_of_large_leaves(tmp_path, rng):
    W = stored.weights((160, 200), rng)  # so many that not every form is tried
    tree = {
        "two_of_four": stored.two_of_four(W, rng),
        "units": np.where(np.arange(200) % 3 > 0, W, np.float32(0)),
        "sparse": stored.sparse(W, 0.8, rng),
    }
    nt.save(tmp_path / "file", tree)
    found = {leaf.path: leaf.encoding for leaf in nt.describe(tmp_path / "file").leaves}
    # sets of four of eight hold two of every four, and are coded a little shorter
    assert found["two_of_four"] in ("2:4", "4:8")
    assert found["units"] == "blocks 160x1"
    nt.save(tmp_path / "file", tree, encodings=("zlib",))  # without any mask
    for leaf in nt.describe(tmp_path / "file").leaves:
        assert leaf.encoding == "planes" and leaf.stored_bytes < 0.8 * leaf.raw_bytes


def test_sizes_are_near_what_information_theory_allows(tmp_path, rng):
    W = stored.sparse(stored.weights((600, 500), rng), 0.95, rng)
    left = int((W != 0).sum())
    share = left / W.size
    where = -W.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    nt.save(tmp_path / "exact", W)
    [leaf] = nt.describe(tmp_path / "exact").leaves
    # signs and 23 bits are noise; exponents of normal numbers have about 2 bits
    assert leaf.stored_bytes < 1.02 * (where + left * (24 + 2.1) / 8)
    nt.save(tmp_path / "shared", stored.shared(W, 32))
    [leaf] = nt.describe(tmp_path / "shared").leaves
    assert leaf.stored_bytes < 1.03 * (where + left * 5 / 8) + 128


def test_plain_leaves_are_read_by_safetensors(tmp_path, rng):
    numpy = pytest.importorskip("safetensors.numpy")
    safetensors = pytest.importorskip("safetensors")
    names = [name for name in CODES if not name.startswith(("float8", "bfloat16"))]
    tree = {name: stored.array(name, (7, 5), rng) for name in names}
    tree |= {"scalar": np.float32(2.5), "kernel": stored.weights((30, 20), rng)}
    path = tmp_path / "model.safetensors"
    nt.save(path, tree, encodings=())
    theirs = numpy.load_file(path)
    assert {k: stored.same(theirs[k], tree[k]) for k in tree} == dict.fromkeys(
        tree, True
    )
    # and what it has of the others is refused by none of its checks
    nt.save(path, stored.kinds(rng))
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata()["format"] == "nettrim_jax"
        assert set(opened.keys()) >= {"dense", "sparse:mask", "sparse:values"}


@pytest.mark.slow
def test_ten_million_entries(tmp_path, rng):
    W = stored.sparse(stored.weights((10**7,), rng), 0.9, rng)
    path = tmp_path / "file"
    nt.save(path, W)
    assert stored.same(nt.load(path), W)
    assert stored.same(reader.read(path)["params"], W)
    [leaf] = nt.describe(path).leaves
    assert leaf.raw_bytes > 9 * leaf.stored_bytes
