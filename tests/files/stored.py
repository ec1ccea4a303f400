"""Arrays of all kinds to store, and files that were changed."""

import math
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import nettrim_jax as nt
from nettrim_jax.files import layout
from nettrim_jax.files.dtypes import DTYPES
from nettrim_jax.results import FileError

MEMORY = 64 * 2**20


def array(name, shape, rng):
    """Any bits that a dtype may have, ``shape``."""
    dtype = DTYPES[name]
    raw = rng.integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    if name == "bool":
        raw &= 1
    elif name in ("int2", "int4"):
        bits = int(name[3:])
        raw = (raw.view(np.int8) << (8 - bits) >> (8 - bits)).view(np.uint8)
    elif name in ("uint2", "uint4"):
        raw &= 2 ** int(name[4:]) - 1
    elif name.startswith(("float4", "float6")):
        raw &= 2 ** int(name[5]) - 1
    return raw.view(dtype).reshape(shape)


def weights(shape, rng, dtype=np.float32):
    """Weights as a layer has them."""
    return (0.1 * rng.normal(size=shape)).astype(dtype)


def sparse(W, share, rng):
    """Weights of which a share is zero."""
    return np.where(rng.random(W.shape) < share, np.zeros((), W.dtype), W)


def two_of_four(W, rng, axis=0):
    """Weights of which two of every four along an axis are zero."""
    moved = np.moveaxis(W, axis, -1).reshape(-1, 4).copy()
    order = rng.permuted(np.tile(np.arange(4), (len(moved), 1)), axis=1)
    np.put_along_axis(moved, order[:, :2], np.zeros((), W.dtype), 1)
    shape = np.moveaxis(W, axis, -1).shape
    return np.ascontiguousarray(np.moveaxis(moved.reshape(shape), -1, axis))


def blocks(W, share, block, rng):
    """Weights of which a share of the blocks is zero."""
    sizes = [-(-d // b) for d, b in zip(W.shape, block, strict=True)]
    kept = np.kron(rng.random(sizes) >= share, np.ones(block))
    kept = kept[: W.shape[0], : W.shape[1]] > 0
    return np.where(kept, W, np.zeros((), W.dtype))  # and no zero with a sign


def shared(W, count, axis=None):
    """Weights whose non-zero values are of few: of the leaf, or of each slice."""
    if axis is not None:
        slices = [shared(one, count) for one in np.moveaxis(W, axis, 0)]
        return np.ascontiguousarray(np.moveaxis(np.stack(slices), 0, axis))
    kept = W[W != 0]
    values = np.quantile(kept, np.linspace(0, 1, count)).astype(W.dtype)
    out = W.copy()
    out[W != 0] = values[np.abs(kept[:, None] - values).argmin(1)]
    return out


def same(one, other):
    """Whether arrays are equal in every bit."""
    one, other = np.asarray(one), np.asarray(other)
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and one.tobytes() == other.tobytes()


def kinds(rng):
    """Leaves that each have another smallest form, by name."""
    W = weights((60, 80), rng)
    return {
        "dense": array("uint8", (40, 60), rng),
        "planes": W,
        "sparse": sparse(W, 0.9, rng),
        "half": sparse(W, 0.5, rng),
        "two_of_four": two_of_four(W, rng),
        "of_four_across": two_of_four(W, rng, axis=1),
        "blocks": blocks(W, 0.7, (4, 4), rng),
        "ragged_blocks": blocks(weights((61, 83), rng), 0.7, (8, 8), rng),
        "rows": np.where(rng.random((60, 1)) < 0.5, np.float32(0), W),
        "units": np.where(rng.random((1, 80)) < 0.5, np.float32(0), W),
        "shared": shared(sparse(W, 0.8, rng), 16),
        "shared_by_unit": shared(sparse(weights((400, 8), rng), 0.3, rng), 8, axis=1),
        "shared_by_row": shared(sparse(weights((8, 400), rng), 0.3, rng), 8, axis=0),
        "shared_everywhere": shared(W, 32),
        "zeros": np.zeros((50, 50), np.float32),
        "bfloat16": sparse(W, 0.9, rng).astype(ml_dtypes.bfloat16),
        "float8": sparse(W, 0.9, rng).astype(ml_dtypes.float8_e4m3fn),
        "int4": array("int4", (60, 80), rng),
        "mask": sparse(W, 0.9, rng) != 0,
        "special": np.array([0.0, -0.0, np.nan, -np.nan, np.inf, 1e-45] * 50, "f4"),
        "complex": sparse(weights((60, 80), rng), 0.9, rng).astype(np.complex128),
        "one": np.ones((1,), np.float32),
        "scalar": np.float32(3.5),
        "empty": np.zeros((3, 0, 2), np.float32),
    }


def good(path):
    """Writes a file with leaves of several kinds; returns these."""
    rng = np.random.default_rng(0)
    W = sparse(weights((60, 40), rng), 0.8, rng)
    tree = {
        "dense": array("uint8", (300,), rng),
        "sparse": {"kernel": W},
        "nm": two_of_four(W + np.float32(1), rng),
        "shared": shared(W, 16),
        "flags": weights((30, 40), rng) > 0,
    }
    nt.save(path, tree, encodings=("bitmask", "nm", "codes", "huffman", "zlib"))
    return tree


def parts(path):
    """A file as its header, texts and tensors in it, and its data."""
    file = path.read_bytes()
    with path.open("rb") as opened:
        header = layout.read_header(opened, "file")
    texts = {key: text for key, text in header.texts.items() if key != "sha256"}
    return texts, dict(header.tensors), file[header.start :]


def forge(path, texts, tensors, data):
    """Writes a file whose header has the right SHA-256, whatever it says."""
    path.write_bytes(layout.header_of(texts, tensors) + data)


def signed(path, header, data=b""):
    """Writes a file of some header, as text with 64 zeros for its SHA-256."""
    header = header.encode()
    length = len(header).to_bytes(8, "little")
    at = len(layout.BEGIN)
    digits = layout.digest_of(length, header)
    path.write_bytes(length + header[:at] + digits + header[at + 64 :] + data)


def refused(path, match, call=nt.load):
    """Whether a file is refused with a message, in a second and little memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(FileError, match=match) as raised:
            call(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 1
    return str(raised.value)
