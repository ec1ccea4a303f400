"""Bytes as fewer bytes: packed, by Huffman's code, or by the standard library.

A decoder is told how many bytes come out and never makes more of them.

Knows bytes; knows no file.
"""

import lzma
import re
import zlib
from collections.abc import Collection

import numpy as np

from nettrim_jax.files import huffman

NAMES = ("zlib", "lzma", "huffman")
RAW = "raw"
WORD = r"raw|pack[1-7]|zlib|lzma|huffman"  # what a coder is called in a file
SMALL = 2**16  # bytes on which every coder is tried
LARGE = 2**22  # bytes from which on speed counts
_BLOCK = 2**20
# raw streams have no header of their own, and the decoder's memory is fixed
_FILTER: dict[str, int] = {
    "id": lzma.FILTER_LZMA1,
    "lc": 0,
    "lp": 0,
    "pb": 0,
    "dict_size": 2**22,
}


def pack(data: np.ndarray, width: int) -> np.ndarray:
    """Bytes below ``2**width`` in so many bits each, the lowest bits first."""
    out = []
    for k in range(0, len(data), _BLOCK):
        bits = np.unpackbits(data[k : k + _BLOCK, None], axis=1, bitorder="little")
        out.append(np.packbits(bits[:, :width].ravel(), bitorder="little"))
    return np.concatenate(out) if out else np.zeros(0, np.uint8)


def unpack(stored: np.ndarray, width: int, count: int) -> np.ndarray:
    """So many bytes from ``width`` bits each."""
    out = np.zeros(count, np.uint8)
    for k in range(0, count, _BLOCK):
        some = min(_BLOCK, count - k)
        part = stored[k * width // 8 : ((k + some) * width + 7) // 8]
        bits = np.unpackbits(part, count=some * width, bitorder="little")
        wide = np.packbits(bits.reshape(some, width), axis=1, bitorder="little")
        out[k : k + some] = wide[:, 0]
    return out


def most(word: str, count: int) -> int:
    """How many bytes are stored at most for so many."""
    if word.startswith("pack"):
        return (count * int(word[4:]) + 7) // 8
    return count


def encode(data: np.ndarray, allowed: Collection[str]) -> tuple[str, bytes]:
    """The smallest form of some bytes, ``[k] uint8``, and the coder's word."""
    forms = [(RAW, data.tobytes())]
    if not data.size:
        return forms[0]
    width = int(data.max()).bit_length() or 1
    if width < 8:
        forms.append((f"pack{width}", pack(data, width).tobytes()))
    forms += [(name, _squeeze(name, data)) for name in _worth(data, allowed)]
    return min(forms, key=lambda form: len(form[1]))


def _worth(data: np.ndarray, allowed: Collection[str]) -> list[str]:
    """The coders to try."""
    names = [name for name in NAMES if name in allowed]
    sample = data
    if len(data) > SMALL:
        if "lzma" in names and "zlib" in names:
            names.remove("zlib")  # which is no smaller on more than a few bytes
        middle = len(data) // 2
        some = [data[:SMALL], data[middle : middle + SMALL], data[-SMALL:]]
        sample = np.concatenate(some)
    if len(data) > 256 and _even(sample):
        if "huffman" in names:
            names.remove("huffman")
        if len(zlib.compress(sample.data, 1)) > 0.985 * len(sample):
            return []  # noise, as the lower bytes of weights are
    return names


def _even(data: np.ndarray) -> bool:
    """Whether all bytes are about equally frequent."""
    counts = np.bincount(data, minlength=256)
    share = counts[counts > 0] / len(data)
    entropy = -float(share @ np.log2(share))
    # a sample looks less even than what it is from (Miller, 1955)
    entropy += (len(share) - 1) / (2 * np.log(2) * len(data))
    return entropy > 0.985 * 8


def _squeeze(name: str, data: np.ndarray) -> bytes:
    large = len(data) > LARGE
    if name == "huffman":
        return huffman.encode(data)
    if name == "zlib":
        squeezer = zlib.compressobj(6 if large else 9, wbits=-15)
        return squeezer.compress(data.data) + squeezer.flush()
    # tables of the size of the data are made sooner
    size = min(_FILTER["dict_size"], max(2 ** (len(data) - 1).bit_length(), 2**12))
    filters = [_FILTER | {"preset": 1 if large else 6, "dict_size": size}]
    return lzma.compress(data.data, lzma.FORMAT_RAW, filters=filters)


def decode(word: str, stored: bytes, count: int) -> np.ndarray:
    """So many bytes from their stored form, ``[count] uint8``.

    Raises:
      ValueError: it is not the form of so many bytes.
    """
    if len(stored) > most(word, count):
        raise ValueError(f"{word} of {count} bytes has {len(stored)}")
    if word == "huffman":
        return huffman.decode(stored, count) if count else np.zeros(0, np.uint8)
    if word == "zlib":
        return _bounded(zlib.decompressobj(-15), stored, count)
    if word == "lzma":
        filters = [_FILTER]
        return _bounded(
            lzma.LZMADecompressor(lzma.FORMAT_RAW, None, filters), stored, count
        )
    if len(stored) != most(word, count):
        raise ValueError(f"{word} of {count} bytes has {len(stored)}")
    data = np.frombuffer(stored, np.uint8)
    if word == RAW:
        return data
    if not re.fullmatch(WORD, word):
        raise ValueError(f"there is no coder {word!r}")
    return unpack(data, int(word[4:]), count)


def _bounded(reader, stored: bytes, count: int) -> np.ndarray:
    """What a decompressor makes, one byte more than there has to be at most."""
    try:
        data = reader.decompress(stored, count + 1)
        if len(data) == count and not reader.eof:
            # the end of the stream may still be to be read
            data += reader.decompress(getattr(reader, "unconsumed_tail", b""), 1)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error)) from None
    if len(data) != count or not reader.eof or reader.unused_data:
        raise ValueError(f"what is compressed is not {count} bytes")
    return np.frombuffer(data, np.uint8)
