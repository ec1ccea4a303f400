"""Dtypes by name, and arrays as the bit patterns of their entries.

Knows NumPy; knows no file.
"""

import ml_dtypes  # comes with jax, which needs it
import numpy as np

# what the layout calls a dtype that it knows; the others are stored as bytes
CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_OTHERS = """complex64 complex128 int2 int4 uint2 uint4 float4_e2m1fn float6_e2m3fn
float6_e3m2fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fnuz
float8_e5m2fnuz float8_e8m0fnu"""
# entries of less than a byte lie in a byte each, of which these values occur
_NARROW = {"int2": (-2, 1), "int4": (-8, 7), "uint2": (0, 3), "uint4": (0, 15)}
_NARROW |= {"bool": (0, 1), "float4_e2m1fn": (0, 15)}
_NARROW |= {"float6_e2m3fn": (0, 63), "float6_e3m2fn": (0, 63)}


def _dtype(name: str) -> np.dtype | None:
    found = getattr(ml_dtypes, name, None)
    if found is None and not hasattr(np, name) and name != "bool":
        return None
    return np.dtype(name if found is None else found)


DTYPES = {
    name: dtype
    for name in [*CODES, *_OTHERS.split()]
    if (dtype := _dtype(name)) is not None
}
# what a file may have, and a ml_dtypes that is too old does not know
UNKNOWN = {*CODES, *_OTHERS.split()} - DTYPES.keys()
SIZES = {code: DTYPES[name].itemsize for name, code in CODES.items()}


def bits_of(array: np.ndarray) -> np.ndarray:
    """The bit patterns of an array's entries, ``[k]``, in C order, without a copy.

    An entry of 16 bytes is two patterns.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"<u{min(flat.dtype.itemsize, 8)}")


def valid(array: np.ndarray) -> bool:
    """Whether every entry is one that its dtype has."""
    limits = _NARROW.get(array.dtype.name)
    if limits is None or not array.size:
        return True
    low, high = limits
    values = array.reshape(-1).view(np.int8 if low < 0 else np.uint8)
    return low <= int(values.min()) and int(values.max()) <= high
