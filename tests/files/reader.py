"""A reader of what ``nettrim_jax.save`` writes, from docs/files.md alone."""

import itertools
import json
import lzma
import zlib

import ml_dtypes
import numpy as np

FORM = {"id": lzma.FILTER_LZMA1, "lc": 0, "lp": 0, "pb": 0, "dict_size": 2**22}


def huffman(data):
    first, codes, code, word = 1 + (data[0] + 2) // 2, {}, 0, ""
    sizes = [(data[1 + s // 2] >> 4 * (s % 2) & 15, s) for s in range(data[0] + 1)]
    for size, s in sorted(one for one in sizes if one[0]):
        codes[f"{code >> 15 - size:0{size}b}"] = s
        code += 1 << 15 - size
    for bit in np.unpackbits(np.frombuffer(data[first:], np.uint8)):
        word += "01"[bit]
        if word in codes:
            yield codes.get(word)
            word = ""


def coder(name, data, count):
    if name == "zlib":
        data = zlib.decompress(data, -15)
    elif name == "lzma":
        data = lzma.decompress(data, lzma.FORMAT_RAW, filters=[FORM])
    elif name == "huffman":
        data = bytes(itertools.islice(huffman(data), count))
    width = int(name[4:]) if name.startswith("pack") else 8
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return bits[: count * width].reshape(count, width) @ (1 << np.arange(width))


def mask(kind, n, data, rows, d):
    if kind == "gaps":
        ends = np.cumsum(np.where(data < n[0], data + 1, n[0]))
        return np.isin(np.arange(rows * d), ends[data < n[0]] - 1)
    if kind == "nm":
        sets = itertools.combinations(range(n[1]), n[0])
        out = np.array([np.isin(range(n[1]), one) for one in sets])[data]
        return (out if n[2] else out.reshape(-1, d, n[1]).swapaxes(1, 2)).ravel()
    grid = -(-rows // n[0]), -(-d // n[1])
    bits = coder("pack1", data.astype(np.uint8), grid[0] * grid[1]).reshape(grid)
    return np.kron(bits, np.ones(n[:2]))[:rows, :d].ravel() > 0


def leaf(text, part):
    dtype, shape, *words = text.split(" ")
    dtype, shape = np.dtype(getattr(ml_dtypes, dtype, dtype)), json.loads(shape)
    words, size = dict(w.partition("=")[::2] for w in words), min(dtype.itemsize, 8)
    view = [*shape, 2] if dtype.itemsize == 16 else shape or [1]
    stored, bits = np.ones(view, bool).ravel(), np.zeros(np.prod(view), f"<u{size}")
    if "mask" in words:
        (kind, *n), name = words["mask"].split("/")[0].split(","), words["mask"]
        data = coder(name.split("/")[1], part(":mask"), int(n[-1]))
        stored = mask(kind, [*map(int, n)], data, int(np.prod(view[:-1])), view[-1])
    if "values" in words:
        at, (kind, *planes), data = 0, words["values"].split("/"), part(":values")
        for k, (name, _, length) in enumerate(plane.partition(":") for plane in planes):
            end = at + int(length or stored.sum())
            plane = coder(name, data[at:end], stored.sum()).astype(bits.dtype)
            bits[stored] |= plane << 8 * k
            at = end
        bits = bits >> 1 | bits << 8 * size - 1 if kind == "turned" else bits
    elif "codes" in words:
        (form, name), slices = words["codes"].split("/"), 0
        most, *axes = map(int, form.split(","))
        for axis in axes:
            slices = slices * view[axis] + np.nonzero(stored.reshape(view))[axis]
        codes = coder(name, part(":codes"), stored.sum()) + most * slices
        bits[stored] = np.frombuffer(part(":book"), bits.dtype)[codes]
    elif "mask" not in words:
        bits = np.frombuffer(part(""), bits.dtype)
    return bits.view(dtype).reshape(shape)


def read(path):
    file = np.fromfile(path, np.uint8).tobytes()
    start = 8 + int.from_bytes(file[:8], "little")
    said = json.loads(file[8:start])

    def part(name):
        begin, end = said[name]["data_offsets"]
        return file[start + begin : start + end]

    texts = {k[5:]: t for k, t in said["__metadata__"].items() if k[:5] == "leaf:"}
    return {
        path: leaf(text, lambda s, p=path: part(p + s)) for path, text in texts.items()
    }
