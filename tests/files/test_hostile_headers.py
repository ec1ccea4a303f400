"""Headers that were made to do harm, and those that are too long."""

import numpy as np
import pytest
import stored
from stored import refused

import nettrim_jax as nt
from nettrim_jax.files import layout
from nettrim_jax.results import FileError

HEAD = '{"__metadata__":{"sha256":"' + "0" * 64 + '"'
TENSOR = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
HEADERS = {
    "twice": (HEAD + "}," + TENSOR + "," + TENSOR + "}", "'a' is there twice"),
    "twice in the texts": (HEAD + ',"v":"1","v":"1"}}', "'v' is there twice"),
    "twice in a tensor": (
        HEAD + "}," + TENSOR.replace("shape", "dtype") + "}",
        "'dtype' is there twice",
    ),
    "NaN": (HEAD + "}," + TENSOR.replace("[1]", "[NaN]") + "}", "the number NaN"),
    "infinite": (HEAD + "}," + TENSOR.replace("[1]", "[1e9]") + "}", "number 1e9"),
    "negative": (
        HEAD + "}," + TENSOR.replace("[1]", "[-1]") + "}",
        "a: expected a dty",
    ),
    "true": (
        HEAD + "}," + TENSOR.replace("[1]", "[true]") + "}",
        "a: expected a dtype",
    ),
    "huge": (
        HEAD + "}," + TENSOR.replace("[1]", "[" + "9" * 5000 + "]") + "}",
        "no JSON",
    ),
    "deep": (HEAD + "}," + '"a":' + "[" * 100_000 + "}", "no JSON"),
    "cut": (HEAD, "no JSON"),
    "a number for a text": (HEAD + ',"v":1}}', "expected texts"),
    "a text for all": (HEAD + "}" + ',"a":"b"}', "a: expected data_offsets"),
    "many": (HEAD + ',"v":"' + "[" * 2**19 + '"}}', "more than 262144 pieces"),
    "many texts": (HEAD + ',"":""' * 2**18 + "}}", "pieces"),
    "no tensor": (HEAD + "}}", "1 bytes of data, and the header says 0"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(tmp_path, name):
    header, message = HEADERS[name]
    stored.signed(tmp_path / "file", header, b"\0")
    refused(tmp_path / "file", message)


LONG = "k" * 2**21
LONGS = {
    "twice": HEAD + f'}},"{LONG}":1,"{LONG[:9]}":1,"{LONG}":1}}',
    "no tensor": HEAD + f'}},"{LONG}":[]}}',
    "text": HEAD + f',"format":"nettrim_jax","version":"1","{LONG}":""}}}}',
    "format": HEAD + f',"format":"{LONG}"}}}}',
    "leaf": HEAD
    + f',"format":"nettrim_jax","version":"1","leaf:{LONG}":"{LONG[:999]}"}}}}',
    "word": HEAD + ',"format":"nettrim_jax","version":"1","leaf:a":'
    f'"uint8 [1] {LONG}=1"}}}}',
    "coder": HEAD + ',"format":"nettrim_jax","version":"1","leaf:a":'
    f'"uint8 [1] left=1 mask=gaps/{LONG} sha256={"A" * 43}="}}}}',
}


@pytest.mark.parametrize("name", LONGS)
def test_what_a_file_says_does_not_make_a_long_message(tmp_path, name):
    stored.signed(tmp_path / "file", LONGS[name])
    said = refused(tmp_path / "file", "file: .*(expected|is|there) ")
    assert "k ... " in said and len(said) < 700 + len(str(tmp_path))


def test_names_of_the_leaves_are_listed_in_part(tmp_path):
    nt.save(tmp_path / "file", {f"leaf{k}": np.ones(1) for k in range(500)})
    with pytest.raises(nt.NetTrimError, match="are leaf0, .* ... .*leaf99$") as raised:
        nt.load(tmp_path / "file", include="none")
    assert len(str(raised.value)) < 700


def test_many_keys_of_which_the_last_is_there_twice(tmp_path):
    keys = ",".join(f'"{k:06d}":1' for k in range(100_000))
    stored.signed(tmp_path / "file", HEAD + f'}},"a":{{{keys},"099999":1}}}}')
    refused(tmp_path / "file", "'099999' is there twice in the header")


def test_headers_that_are_too_long_to_be_written():
    with pytest.raises(FileError, match="a header of 8388648 bytes, and 8388608 is"):
        layout.header_of({"a": "x" * (2**23 - 64)}, {})
    with pytest.raises(FileError, match="0 tensors need a header of 262148 pieces, th"):
        layout.header_of({f"leaf{k}": "," for k in range(2**17 + 1)}, {})


def test_most_pieces_fit_the_memory(tmp_path):
    rest = ",".join(f'"{k}":[]' for k in range(2**17 - 2))
    stored.signed(tmp_path / "file", HEAD + "}," + rest + "}")
    refused(tmp_path / "file", "0: expected data_offsets")
