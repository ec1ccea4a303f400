"""Huffman's code of bytes (Huffman, 1952), in NumPy.

The code is canonical: shorter codes first, and among those of one length smaller bytes.
It is stored as a count ``k`` less one in a byte, the lengths of the codes of the bytes
``0 ... k - 1`` in four bits each, the lower half of a byte first, and then the codes,
the first bit of each first, from the highest bit of a byte on.

Knows bytes; knows no file.
"""

import heapq

import numpy as np

LONGEST = 15  # bits of a code
_BLOCK = 2**17  # bytes or symbols at a time
_NONE = 16  # the length that stands for bits that are no code


def lengths_of(counts: np.ndarray) -> np.ndarray:
    """The length of each byte's code, zero for those that do not occur, ``[256]``."""
    lengths = np.zeros(256, np.uint8)
    used = np.flatnonzero(counts)
    if len(used) == 1:
        lengths[used] = 1
        return lengths
    weights = counts.astype(np.int64)
    while len(used):
        heap: list[tuple[int, int, tuple[int, ...]]]
        heap = [(int(weights[k]), int(k), (int(k),)) for k in used]
        heapq.heapify(heap)
        lengths[:] = 0
        while len(heap) > 1:
            one, other = heapq.heappop(heap), heapq.heappop(heap)
            both = one[2] + other[2]
            lengths[list(both)] += 1
            heapq.heappush(heap, (one[0] + other[0], min(one[1], other[1]), both))
        if lengths.max() <= LONGEST:
            break
        # flatter counts have shorter codes
        weights[used] = weights[used] // 2 + 1
    return lengths


def _codes(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes in the order of their codes, and these codes, moved to 15 bits."""
    order = np.lexsort((np.arange(256), lengths))
    order = order[lengths[order] > 0]
    widths = 1 << (LONGEST - lengths[order].astype(np.int64))
    return order, np.cumsum(widths) - widths


def encode(data: np.ndarray) -> bytes:
    """The code of some bytes, ``[k] uint8``, of which there is at least one."""
    lengths = lengths_of(np.bincount(data, minlength=256))
    order, codes = _codes(lengths)
    table = np.zeros(256, np.int64)
    table[order] = codes
    count = int(order.max()) + 1
    nibbles = np.zeros(count + count % 2, np.uint8)
    nibbles[:count] = lengths[:count]
    out = [bytes([count - 1]), (nibbles[::2] | nibbles[1::2] << 4).tobytes()]
    rest = np.zeros(0, np.uint8)
    for k in range(0, len(data), _BLOCK):
        part = data[k : k + _BLOCK]
        sizes, values = lengths[part].astype(np.int64), table[part]
        ends = len(rest) + np.cumsum(sizes)
        bits = np.zeros(int(ends[-1]), np.uint8)
        bits[: len(rest)] = rest
        starts = ends - sizes
        for j in range(int(sizes.max())):
            pick = sizes > j
            bits[starts[pick] + j] = values[pick] >> (LONGEST - 1 - j) & 1
        whole = len(bits) // 8 * 8
        out.append(np.packbits(bits[:whole]).tobytes())
        rest = bits[whole:]
    return b"".join([*out, np.packbits(rest).tobytes()])


def decode(stored: bytes, count: int) -> np.ndarray:
    """So many bytes from their code, ``[count] uint8``.

    Raises:
      ValueError: it is no code of so many bytes.
    """
    if not stored or len(stored) < 1 + (stored[0] + 2) // 2:
        raise ValueError("the code is cut off")
    symbols = stored[0] + 1
    size = (symbols + 1) // 2
    nibbles = np.frombuffer(stored, np.uint8, size, 1)
    lengths = np.zeros(256, np.uint8)
    both = np.stack([nibbles & 15, nibbles >> 4], 1).ravel()
    lengths[:symbols] = both[:symbols]
    order, codes = _codes(lengths)
    widths = 1 << (LONGEST - lengths[order].astype(np.int64))
    if not len(order) or widths.sum() > 2**LONGEST or both[symbols:].any():
        raise ValueError("its lengths are those of no code")
    letter = np.zeros(2**LONGEST, np.uint8)
    length = np.full(2**LONGEST, _NONE, np.uint8)
    filled = int(widths.sum())
    letter[:filled] = np.repeat(order.astype(np.uint8), widths)
    length[:filled] = np.repeat(lengths[order], widths)
    return _follow(np.frombuffer(stored, np.uint8, -1, 1 + size), count, letter, length)


def _follow(
    stream: np.ndarray, count: int, letter: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """The bytes of a stream of codes, by tables of what begins with 15 bits."""
    if count > 8 * len(stream):
        raise ValueError(f"{len(stream)} bytes are too few for {count} codes")
    out, done, at = np.zeros(count, np.uint8), 0, 0
    padded = np.concatenate([stream, np.zeros(2, np.uint8)])
    for first in range(0, len(stream), _BLOCK):
        part = padded[first : first + _BLOCK + 2].astype(np.uint32)
        three = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
        windows = three[:, None] >> np.arange(9, 1, -1, dtype=np.uint32) & 0x7FFF
        windows = windows.ravel()
        # where a code ends is known once the one before has been read
        steps, starts, most = length[windows].tobytes(), [], count - done
        end = len(steps)
        while at < end and len(starts) < most:
            starts.append(at)
            at += steps[at]
        begins = windows[starts]
        if starts and int(length[begins].max()) == _NONE:
            raise ValueError("it has bits that are no code")
        out[done : done + len(starts)] = letter[begins]
        done += len(starts)
        at -= end
        if done == count:
            at += 8 * min(first + _BLOCK, len(stream))
            break
    if done < count or not 0 <= 8 * len(stream) - at < 8:
        raise ValueError(f"{len(stream)} bytes are not {count} codes")
    return out
