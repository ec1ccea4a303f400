"""What is loaded goes into trees of every kind, and only what is asked for."""

import io
import os

import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

import nettrim_jax as nt
from nettrim_jax.files import decoding
from nettrim_jax.results import ParamsError


def tree(rng):
    """Params as of Linen."""
    W = stored.sparse(stored.weights((24, 16), rng), 0.8, rng)
    layers = {
        "Dense_0": {"kernel": W, "bias": stored.weights((16,), rng)},
        "Dense_1": {"kernel": stored.weights((16, 4), rng)},
    }
    return {"params": layers}


def equal(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(stored.same, one, other)
    )


@pytest.fixture
def file(tmp_path, rng):
    """A file, and the tree in it."""
    params = tree(rng)
    nt.save(tmp_path / "file", params)
    return tmp_path / "file", params


def test_without_like_a_dict(file):
    path, params = file
    assert equal(nt.load(path), params)
    assert equal(nt.load(str(path)), params)


def test_arrays_are_of_the_kind_of_like(file):
    path, params = file
    device = jax.devices()[0]
    like = {
        "params": {
            "Dense_0": {
                "kernel": jax.device_put(np.zeros((24, 16), np.float32), device),
                "bias": jax.ShapeDtypeStruct((16,), np.float32),
            },
            "Dense_1": {"kernel": np.zeros((16, 4), np.float32)},
        }
    }
    back = nt.load(path, like=like)
    assert equal(back, params)
    first = back["params"]["Dense_0"]
    assert isinstance(first["kernel"], jax.Array) and first["kernel"].committed
    assert isinstance(first["bias"], jax.Array) and not first["bias"].committed
    assert isinstance(back["params"]["Dense_1"]["kernel"], np.ndarray)
    uncommitted = nt.load(path, like=jax.tree.map(jax.device_put, params))
    assert not any(leaf.committed for leaf in jax.tree.leaves(uncommitted))


def test_nothing_is_compiled(file):
    path, params = file
    like = jax.tree.map(jax.device_put, params)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr("logging.Logger.handle", lambda self, record: seen.append(record))
        nt.load(path, like=like)
        nt.save(path, like)
    assert not [r for r in seen if "Compiling" in r.getMessage()]


def test_records_are_saved_by_their_params(tmp_path, rng):
    params = tree(rng)
    pruned = nt.Pruned(params, None, None)
    nt.save(tmp_path / "file", pruned)
    assert equal(nt.load(tmp_path / "file"), params)
    # a user's own record is a tree
    with_params = {"params": np.ones(3), "step": np.int32(4)}
    nt.save(tmp_path / "file", with_params)
    assert equal(nt.load(tmp_path / "file"), with_params)


# ---- some of the leaves


def test_include(file):
    path, params = file
    assert equal(
        nt.load(path, include=r"Dense_0/k"),
        {"params": {"Dense_0": {"kernel": params["params"]["Dense_0"]["kernel"]}}},
    )
    some = nt.load(path, include=lambda leaf: leaf.size == 64)
    assert list(some["params"]) == ["Dense_1"]
    like = jax.tree.map(np.zeros_like, params)
    back = nt.load(path, like=like, include=r"kernel")
    assert back["params"]["Dense_0"]["bias"] is like["params"]["Dense_0"]["bias"]
    assert stored.same(
        back["params"]["Dense_1"]["kernel"], params["params"]["Dense_1"]["kernel"]
    )


def test_only_what_is_asked_for_is_read(file, monkeypatch):
    path, _ = file
    read, inner = [], decoding.Reader.array
    monkeypatch.setattr(
        decoding.Reader, "array", lambda r, p: (read.append(p), inner(r, p))[1]
    )
    nt.load(path, include="Dense_1")
    assert read == ["params/Dense_1/kernel"]


def test_include_that_is_wrong(file):
    with pytest.raises(
        ParamsError, match="include='conv' matches no leaf; the leaves a"
    ):
        nt.load(file[0], include="conv")
    with pytest.raises(
        ParamsError, match="expected a regular expression or a function"
    ):
        nt.load(file[0], include="(")
    with pytest.raises(
        ParamsError, match="expected a regular expression or a function"
    ):
        nt.load(file[0], include=3)
    with pytest.raises(
        ParamsError, match="include=b'k': expected a regular expression or a function"
    ):
        nt.load(file[0], include=b"k")


# ---- what does not fit


def test_other_shapes_dtypes_and_leaves(file):
    path, params = file
    layers = params["params"]

    def changed(layer, name, leaf):
        return {"params": {**layers, layer: {**layers[layer], name: leaf}}}

    for leaf, message in [
        (
            np.zeros((16, 5), np.float32),
            r"float32 \[16, 4\] in .*float32 \[16, 5\] in l",
        ),
        (np.zeros((16, 4), np.float16), r"Dense_1/kernel is float32 .* and float16"),
        (jax.random.key(0), r"Dense_1/kernel is float32 .* and key<fry> \[\] in like"),
    ]:
        with pytest.raises(ParamsError, match=message):
            nt.load(path, like=changed("Dense_1", "kernel", leaf))
    more = changed("Dense_1", "bias", np.zeros(4, np.float32))
    with pytest.raises(
        ParamsError, match="like has params/Dense_1/bias, and .* no such"
    ):
        nt.load(path, like=more)
    assert (
        nt.load(path, like=more, include="Dense_0")["params"]["Dense_1"]["bias"].sum()
        == 0
    )
    fewer = {"params": {"Dense_0": layers["Dense_0"]}}
    with pytest.raises(ParamsError, match="has params/Dense_1/kernel, and like has no"):
        nt.load(path, like=fewer)


def test_float64_without_x64(tmp_path):
    nt.save(tmp_path / "file", {"a": np.ones(3)})
    like = {"a": jax.ShapeDtypeStruct((3,), np.float64)}
    with (
        jax.enable_x64(False)
        if hasattr(jax, "enable_x64")
        else jax.experimental.disable_x64()
    ):
        with pytest.raises(ParamsError, match="a is float64, which JAX makes float32"):
            nt.load(tmp_path / "file", like=like)


# ---- trees of frameworks


def test_trees_of_all_kinds(tmp_path, rng):
    W = stored.sparse(stored.weights((24, 16), rng), 0.8, rng)
    key = jax.random.key(3)
    trees = {
        "array": W,
        "list": [W, (W[:3], None)],
        "haiku": {"mlp/~/linear_0": {"w": W}, "mlp/~": {"b": W[0]}},
        "empty": {"": W},
        "empty below": {"": {"": W, "a": W[0]}, "b": {"": W[1]}},
        "empty_like_root": {"params": W},
        "numbers": {0: W, 1: {"a": W[0]}},
        "statics": {"W": W, "rate": 0.5, "name": "x", "none": None, "f": np.sin},
        "scalars": {"a": np.float32(2), "b": np.int8(3)},
        "keys": {
            "key": key,
            "old": jax.random.PRNGKey(1),
            "keys": jax.random.split(key),
        },
    }
    for name, params in trees.items():
        path = tmp_path / name
        nt.save(path, params)
        back = nt.load(path, like=params)
        assert jax.tree.structure(back) == jax.tree.structure(params), name
        for one, other in zip(*map(jax.tree.leaves, (back, params)), strict=True):
            if hasattr(other, "dtype") and jnp.issubdtype(
                other.dtype, jax.dtypes.prng_key
            ):
                one, other = map(jax.random.key_data, (one, other))
            assert stored.same(one, other) if hasattr(one, "dtype") else one is other
            assert type(one) is type(other), name
        if name.startswith("empty"):
            assert equal(nt.load(path), params), name
    plain = nt.load(tmp_path / "haiku")
    assert equal(plain, trees["haiku"])
    assert list(nt.load(tmp_path / "list")) == ["0", "1"]
    assert stored.same(nt.load(tmp_path / "array"), W)
    assert nt.load(tmp_path / "keys")["key"] == key


def test_linen_nnx_and_equinox(tmp_path, rng):
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    W, path = stored.sparse(stored.weights((24, 16), rng), 0.8, rng), tmp_path / "file"

    class Module(eqx.Module):
        kernel: jax.Array
        activation: object
        rate: float

    module = Module(jax.device_put(W), jax.nn.relu, 0.5)
    nt.save(path, module)
    back = nt.load(path, like=Module(jax.device_put(W * 0), jax.nn.tanh, 0.1))
    assert stored.same(back.kernel, W) and back.activation is jax.nn.tanh
    assert back.rate == 0.1 and isinstance(back, Module)

    state = nnx.State({"dense": {"kernel": nnx.Param(jax.device_put(W))}})
    nt.save(path, state)
    back = nt.load(path, like=jax.tree.map(lambda a: a * 0, state))
    assert isinstance(back, nnx.State)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert stored.same(jax.tree.leaves(back)[0], W)
    # a box is no part of the name: what was a variable is an array elsewhere, and back
    plain = {"dense": {"kernel": np.zeros_like(W)}}
    assert stored.same(nt.load(path, like=plain)["dense"]["kernel"], W)
    assert nt.describe(path).leaves[0].box == "dense/kernel"
    nt.save(path, plain)
    assert stored.same(
        jax.tree.leaves(nt.load(path, like=state))[0], plain["dense"]["kernel"]
    )


# ---- on several devices


SHARDS = """
import pathlib, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import nettrim_jax as nt

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)
W = (rng.normal(size=(512, 640)) * (rng.random((512, 640)) < 0.2)).astype("f4")
for k, encodings in enumerate([(), ("bitmask",)]):
    nt.save(folder / str(k), {"W": W}, encodings=encodings)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))
    for k in "01":
        for spec in (("a",), (None, "a"), ("a", "b"), ()):
            where = NamedSharding(mesh, PartitionSpec(*spec))
            like = {"W": jax.ShapeDtypeStruct(W.shape, W.dtype, sharding=where)}
            back = nt.load(folder / k, like=like)["W"]
            assert back.sharding == where, (back.sharding, where)
            for shard in back.addressable_shards:
                assert np.asarray(shard.data).tobytes() == W[shard.index].tobytes()
nt.save(folder / "again", {"W": back}, encodings=("bitmask",))
assert (folder / "again").read_bytes() == (folder / "1").read_bytes()
"""


@pytest.mark.slow
def test_shards(tmp_path):
    devices.run(SHARDS, str(tmp_path), devices=4)


WIDE = """
import pathlib, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import nettrim_jax as nt

jax.config.update("jax_enable_x64", False)
file = pathlib.Path(sys.argv[1]) / "file"
W = 1 + 1e-12 * np.arange(6.0).reshape(2, 3)
where = NamedSharding(Mesh(np.array(jax.devices()), "a"), PartitionSpec("a"))
like = {"W": jax.ShapeDtypeStruct(W.shape, np.float64, sharding=where)}
for encodings in ((), ("codes",)):
    nt.save(file, {"W": W}, encodings=encodings)
    try:
        print(nt.load(file, like=like)["W"].dtype)
    except nt.NetTrimError as error:
        assert "W is float64, which JAX makes float32" in str(error), error
    else:
        raise AssertionError("rounded")
jax.config.update("jax_enable_x64", True)
assert np.asarray(nt.load(file, like=like)["W"]).tobytes() == W.tobytes()
"""


def test_shards_of_float64_are_not_rounded(tmp_path):
    devices.run(WIDE, str(tmp_path), devices=2)


def test_a_part_of_a_plain_leaf_reads_no_other_bytes(tmp_path, rng, monkeypatch):
    W = stored.weights((4096, 512), rng)  # 8 MiB
    nt.save(tmp_path / "file", {"W": W}, encodings=())
    with decoding.reading(tmp_path / "file") as reader:
        read, inner = [], reader._read
        monkeypatch.setattr(
            reader,
            "_read",
            lambda begin, count: (read.append(count), inner(begin, count))[1],
        )
        index = slice(1000, 1500), slice(7, 300)
        assert stored.same(reader.part("W", index), W[index])
        assert sum(read) <= W[index[0]].nbytes + 3 * 2**20
        every = slice(None), slice(5, 6)
        assert stored.same(reader.part("W", every), W[every])
    # and what is damaged there is noticed
    file = bytearray((tmp_path / "file").read_bytes())
    file[-4096 * 512 * 2] ^= 1
    (tmp_path / "file").write_bytes(file)
    with decoding.reading(tmp_path / "file") as reader:
        assert stored.same(reader.part("W", (slice(0, 100), slice(None))), W[:100])
        with pytest.raises(nt.NetTrimError, match="W: its values are damaged"):
            reader.part("W", (slice(2000, 2100), slice(None)))


class Short(io.FileIO):
    """A file whose reads stop early, as on a file system of a network."""

    def readinto(self, buffer):
        with memoryview(buffer) as view:
            return super().readinto(view[:100])

    def read(self, size=-1):
        return super().read(min(size, 100))


@pytest.mark.parametrize("encodings", [(), ("bitmask", "zlib")], ids=len)
def test_reads_that_stop_early(tmp_path, rng, encodings):
    params = tree(rng)
    nt.save(tmp_path / "file", params, encodings=encodings)
    with Short(tmp_path / "file") as file:
        reader = decoding.Reader(file, "file")
        kernel = reader.array("params/Dense_0/kernel")
    assert stored.same(kernel, params["params"]["Dense_0"]["kernel"])


def test_a_file_that_was_cut_while_it_is_read(tmp_path, rng):
    W = stored.weights((200, 100), rng)
    nt.save(tmp_path / "file", {"W": W}, encodings=())
    with decoding.reading(tmp_path / "file") as reader:
        os.truncate(tmp_path / "file", reader.size - 300)
        with pytest.raises(nt.NetTrimError, match="W: the file ends, 300 bytes too"):
            reader.array("W")


def test_orbax_is_a_bridge_of_two_lines(tmp_path, rng):
    orbax = pytest.importorskip("orbax.checkpoint")
    params = tree(rng)
    nt.save(tmp_path / "file", params)
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", nt.load(tmp_path / "file"))
        checkpointer.wait_until_finished()
        nt.save(tmp_path / "again", checkpointer.restore(tmp_path / "orbax"))
    assert equal(nt.load(tmp_path / "again"), params)
