"""Files that were damaged, or made to do harm: an error that says which leaf."""

import base64
import hashlib
import lzma
import os
import pickle
import re
import zlib

import numpy as np
import pytest
import stored
from stored import refused

import nettrim_jax as nt
from nettrim_jax.files import leaves
from nettrim_jax.files.coders import _FILTER


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A file with leaves of several kinds, and these."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    return path, stored.good(path)


@pytest.fixture
def changed(good, tmp_path):
    """Writes the good file with other texts, tensors and data, and a right digest."""

    def change(edit):
        texts, tensors, data = stored.parts(good[0])
        path = tmp_path / "changed"
        data = edit(texts, tensors) or data
        stored.forge(path, texts, tensors, data)
        return path

    return change


def replaced(leaf, old, new):
    """An edit of what the header says of a leaf."""

    def edit(texts, tensors):
        key = f"leaf:{leaf}"
        assert re.search(old, texts[key]), texts[key]
        texts[key] = re.sub(old, new, texts[key])

    return edit


def test_the_changes_are_what_is_refused(good, changed):
    path = changed(lambda texts, tensors: None)
    assert path.read_bytes() == good[0].read_bytes()
    back = nt.load(path)
    assert stored.same(back["sparse"]["kernel"], good[1]["sparse"]["kernel"])


# ---- the file as a whole


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 300, -4000, -1])
def test_truncated(good, tmp_path, size):
    path = tmp_path / "cut"
    path.write_bytes(good[0].read_bytes()[:size])
    refused(path, "cut: ")
    refused(path, "cut: ", nt.describe)


def test_trailing(good, tmp_path):
    path = tmp_path / "longer"
    path.write_bytes(good[0].read_bytes() + b"\0")
    refused(path, "bytes of data, and the header says")


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 10**9])
def test_absurd_header(good, tmp_path, count):
    path = tmp_path / "absurd"
    path.write_bytes(count.to_bytes(8, "little") + good[0].read_bytes()[8:])
    refused(path, f"a header of {count} bytes does not fit")
    with path.open("wb") as file:  # a file of holes, as long as it says
        file.write((2**33).to_bytes(8, "little"))
        file.truncate(2**34)
    refused(path, "at most 8388608 are read")


def test_a_pickle_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Harm()) * 9)
    refused(path, "does not fit")
    path.write_bytes((64).to_bytes(8, "little") + pickle.dumps(Harm()) * 9)
    refused(path, "expected a file that nettrim_jax.save has written")
    assert not (tmp_path / "harm").exists()


def test_files_of_others(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "theirs"
    numpy.save_file({"kernel": np.ones((3, 2), np.float32)}, path)
    refused(path, "one of safetensors alone is read by safetensors")


def test_what_is_no_file(tmp_path):
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("/dev/zero")
    refused(link, "link: expected a file")
    os.mkfifo(pipe)
    refused(pipe, "pipe: expected a file")
    refused(tmp_path, "expected a file")
    with pytest.raises(FileNotFoundError):
        nt.load(tmp_path / "none")


# ---- the tensors

TEXTS = {
    "version": (r"version '2', and this library reads '1'", {"version": "2"}),
    "format": ("expected the format", {"format": "other"}),
    "text": ("'more' is no text that is known", {"more": ""}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(changed, name):
    message, more = TEXTS[name]
    refused(changed(lambda texts, tensors: texts.update(more)), message)


def moved(name, **fields):
    """An edit of a tensor."""

    def edit(texts, tensors):
        tensors[name] = tensors[name]._replace(**fields)

    return edit


def overlap(texts, tensors):
    first, second = sorted(tensors, key=lambda name: tensors[name].begin)[:2]
    size = tensors[second].end - tensors[second].begin
    tensors[second] = tensors[second]._replace(begin=0, end=size)


def gap(texts, tensors):
    last = max(tensors, key=lambda name: tensors[name].begin)
    one = tensors[last]
    tensors[last] = one._replace(begin=one.begin + 1, end=one.end + 1)


def orphan(texts, tensors):
    del texts["leaf:dense"]


def missing(texts, tensors):
    texts["leaf:other"] = texts["leaf:dense"]


TENSORS = {
    "overlap": (overlap, "overlaps another one|leaves a gap"),
    "gap": (gap, "leaves a gap"),
    "orphan": (orphan, "dense: a tensor that belongs to no leaf"),
    "missing": (missing, "other: there is no tensor 'other'"),
    "shape": (moved("dense", shape=(301,)), "dense: U8 .301. has 301 bytes"),
    "dtype": (moved("dense", dtype="I8"), "dense: uint8 .300., and its tensor is I8"),
    "huge": (moved("dense", shape=(10**18,)), "dense: U8 .10+. has 10+ bytes"),
    "product": (moved("dense", shape=(2**62,) * 60), "dense: U8 "),
    "axes": (
        moved("dense", shape=(1,) * 99),
        "dense: expected two offsets and at most",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(changed, name):
    edit, message = TENSORS[name]
    refused(changed(edit), message)
    refused(changed(edit), message, nt.describe)


LEAVES = {
    "elements": (
        "dense",
        r"\[300\]",
        "[1000000000000000000]",
        "needs 953674316407 dig",
    ),
    "encoded": ("sparse/kernel", r"\[60,40\]", "[10000000000,100000000]", "digests"),
    "dtype": ("dense", "^uint8", "object", "expected a dtype"),
    "wider": ("sparse/kernel", "float32", "float64", "no planes of 8 bytes"),
    "same size": ("sparse/kernel", "float32", "int8", "no planes of 1 bytes"),
    "words": ("dense", " .*", "", "expected a dtype, a shape and words"),
    "unknown word": ("dense", "left", "right", "'right' is unknown"),
    "word twice": ("dense", "left=", "left=3 left=", "'left' is unknown, or is there"),
    "count": ("dense", r"left=\d+", "left=301", "301 of 300 entries"),
    "less": ("dense", r"left=\d+", "left=7", "not 7 of its entries are left"),
    "digits": ("dense", r"left=\d+", "left=٣", "expected the number"),  # noqa: RUF001
    "mask": ("sparse/kernel", "mask=bits", "mask=rle", "there is no mask 'rle,"),
    "mask size": ("sparse/kernel", "bits,1,1,300", "bits,1,1,301", "there is no mask"),
    "mask number": ("sparse/kernel", "bits,1,1", "bits,0,1", "there is no mask"),
    "blocks": ("sparse/kernel", "bits,1,1", f"bits,{2**62},1", "there is no mask"),
    "sets": ("nm", "nm,2,4", "nm,8,16", "there is no mask"),
    "fewer sets": ("nm", "nm,2,4", "nm,1,4", "there are 4 sets of 1 of 4"),
    "gaps": ("sparse/kernel", "bits,1,1,300", "gaps,255,300", "sparse/kernel: "),
    "coder": ("shared", "codes=17/huffman", "codes=17/zip", "no coder 'zip'"),
    "width": ("shared", "codes=17/huffman", "codes=17/pack9", "no coder 'pack9'"),
    "other coder": ("shared", "codes=17/huffman", "codes=17/zlib", "shared: "),
    "book": ("shared", "codes=17/", "codes=300/", "there is no book '300'"),
    "smaller book": ("shared", "codes=17/", "codes=9/", "has 68 bytes, and at most 36"),
    "larger book": ("shared", "codes=17/", "codes=18/", "its book has 68 bytes"),
    "axis": ("shared", "codes=17/", "codes=17,2/", "there is no book '17,2'"),
    "books": ("shared", "codes=17/", "codes=255,0,1/", "there is no book"),
    "planes": ("sparse/kernel", "values=turned", "values=spun", "no planes of 4"),
    "length": ("sparse/kernel", r"huffman:\d+$|zlib:\d+", "zlib:9" * 3, "kernel: "),
    "base64": ("dense", "sha256=..", "sha256=??", "its digests are no base64"),
    "digest": ("dense", "sha256=.*", "sha256=" + "A" * 43 + "=", "SHA-256 is another"),
    "no digest": ("dense", "sha256=.*", "sha256=", "needs 1 digests, and it has 0"),
    "keys": ("sparse/kernel", "left", "keys=3,9 left", "are not those of its path"),
    "key": ("sparse/kernel", "left", "keys=-1 left", "are no lengths"),
    "random keys": ("dense", "left", "prng=none left", "no random keys of 'none'"),
}


def test_a_dtype_that_an_older_ml_dtypes_does_not_know(good, monkeypatch):
    monkeypatch.setattr(leaves, "UNKNOWN", {"uint8"})
    refused(good[0], "dense: this ml_dtypes knows no uint8; update ml_dtypes")


@pytest.mark.parametrize("name", LEAVES)
def test_leaves(changed, name):
    leaf, old, new, message = LEAVES[name]
    said = refused(changed(replaced(leaf, old, new)), message)
    assert f"{leaf}: " in said


# ---- the data


def with_part(good, tmp_path, name, content, edit=lambda texts, tensors: None):
    """The good file with other bytes for one tensor."""
    texts, tensors, data = stored.parts(good[0])
    out, begin = b"", 0
    for key, one in tensors.items():
        part = content if key == name else data[one.begin : one.end]
        shape = (len(part),) if key == name else one.shape
        tensors[key] = one._replace(
            shape=shape, begin=len(out), end=len(out) + len(part)
        )
        out += part
        begin += len(part)
    edit(texts, tensors)
    stored.forge(tmp_path / "changed", texts, tensors, out)
    return tmp_path / "changed"


BOMBS = {
    "zlib": lambda n: zlib.compress(bytes(n), 9, wbits=-15),
    "lzma": lambda n: lzma.compress(
        bytes(n), lzma.FORMAT_RAW, filters=[_FILTER | {"preset": 0}]
    ),
}


@pytest.mark.parametrize("size", [2**26, pytest.param(2**28, marks=pytest.mark.slow)])
@pytest.mark.parametrize("coder", BOMBS)
def test_bombs(tmp_path, coder, size):
    content = BOMBS[coder](size)  # zeros in few bytes
    rng = np.random.default_rng(0)
    W = stored.sparse(stored.weights((2400, 1000), rng), 0.999, rng)
    large = tmp_path / "large"
    nt.save(large, {"kernel": W}, encodings=("bitmask", "zlib"))

    def edit(texts, tensors):
        word = r"mask=(bits,1,1,\d+)/\w+"
        texts["leaf:kernel"] = re.sub(word, rf"mask=\1/{coder}", texts["leaf:kernel"])

    path = with_part((large,), tmp_path, "kernel:mask", content, edit)
    assert len(content) < 300_000
    refused(path, "kernel: what is compressed is not 300000 bytes")


def test_a_consistent_bomb_needs_digests(tmp_path):
    # 8 KB cannot say that they are 256 MiB: each MiB needs a digest in the header
    path = tmp_path / "bomb"
    nt.save(path, {"zeros": np.zeros(2**21, np.uint8)})
    texts, tensors, data = stored.parts(path)
    assert path.stat().st_size < 8192
    texts["leaf:zeros"] = texts["leaf:zeros"].replace(f"[{2**21}]", f"[{2**28}]")
    stored.forge(path, texts, tensors, data)
    refused(path, "zeros: shape .268435456. of uint8 needs 256 digests, and it has 2")


def test_a_digest_that_is_right_does_not_make_bits_valid(tmp_path):
    path = tmp_path / "file"
    nt.save(path, {"flags": np.ones(300, bool)}, encodings=())
    texts, tensors, _ = stored.parts(path)
    digest = base64.b64encode(hashlib.sha256(b"\2" * 300).digest()).decode()
    texts["leaf:flags"] = re.sub("sha256=.*", f"sha256={digest}", texts["leaf:flags"])
    stored.forge(path, texts, tensors, b"\2" * 300)
    refused(path, "flags: it has bits that no bool has")


def test_a_tree_below_an_array(tmp_path):
    path = tmp_path / "file"
    one = np.ones(300, np.uint8)
    nt.save(path, {"a": one, "c": {"b": one}}, encodings=())
    texts, tensors, data = stored.parts(path)
    texts["leaf:a/b"] = texts.pop("leaf:c/b")
    tensors["a/b"] = tensors.pop("c/b")
    stored.forge(path, texts, tensors, data)
    refused(path, "a/b: a tree is below an array")


def test_names_are_names_only(tmp_path):
    path = tmp_path / "inside" / "file"
    path.parent.mkdir()
    before = sorted(tmp_path.rglob("*"))
    tree = {
        "../../outside": np.ones(3),
        "/etc/passwd": np.ones(2),
        "": {"": np.ones(1)},
    }
    nt.save(path, tree)
    back = nt.load(path)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])
    assert back.keys() == tree.keys()
