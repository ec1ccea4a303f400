"""What cannot be saved is refused with its path, and nothing is written."""

import jax
import numpy as np
import pytest

import nettrim_jax as nt
from nettrim_jax.results import ParamsError


class Foreign:
    """An array of another framework, with a dtype of its own."""

    def __init__(self, values, dtype="foreign.float32"):
        self.values, self.dtype, self.shape = values, dtype, (3,)

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


def test_what_cannot_be_saved(tmp_path, rng):
    path = tmp_path / "file"

    def refused(params, message, **settings):
        with pytest.raises(ParamsError, match=message):
            nt.save(path, params, **settings)
        assert not list(tmp_path.iterdir())

    refused({}, "dict has no array")
    refused({"a": 1.0, "b": "text"}, "dict has no array")
    refused({"a": np.array(["text"])}, "a is str128; expected one of bool")
    refused({"a": np.array([None])}, "a is object; expected one of")
    refused({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, "'a/b' is the name of another")
    refused({"a": np.ones(1), "a:mask": np.ones(1)}, "'a:mask' is the name of another")
    refused({"\ud800": np.ones(1)}, "is no text of Unicode")
    refused({"a": np.ones(1)}, "encodings='lzma'; expected some", encodings="lzma")
    refused({"a": np.ones(1)}, "expected some of", encodings=["rle"])
    for encodings in (None, 3, iter(["zlib"]), [["zlib"]], [1, "zlib"], b"zlib"):
        refused({"a": np.ones(1)}, "encodings=.*expected some", encodings=encodings)
    layer = {"k": jax.ShapeDtypeStruct((3, 2), np.float32)}
    refused({"a": layer}, "a/k is a ShapeDtypeStruct, which has a shape and no values")
    masked = np.ma.masked_array(np.ones(3), [True, False, False])
    refused({"a": {"k": masked}}, "a/k is a masked array, and a file has no mask")
    refused({"a": {"k": Foreign(np.ones(3))}}, "a/k is foreign.float32; expected one")
    refused({"a": Foreign(np.ones(3), object())}, "a is <object object at .*; expected")
    refused({"a": Foreign(np.ones(3), "f4")}, "a says .* float32 .*makes float64 .3.")
    refused({"a": Foreign(TypeError("on a GPU"), "f4")}, "a is a Foreign.*on a GPU")
    gone = jax.device_put(np.ones(3))
    gone.delete()
    refused({"a": gone}, "a was deleted")

    def traced(a):
        nt.save(path, {"a": a})
        return a

    with pytest.raises(ParamsError, match="a is being traced"):
        jax.eval_shape(traced, np.ones(3))
