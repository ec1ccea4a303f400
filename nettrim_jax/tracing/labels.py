"""Labels of axes: what the entries of an axis have to do with the weights of rows.

Knows numbers; knows no program.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Factor(NamedTuple):
    """A part of an axis: entry ``i`` is at ``start + step * i`` of an axis of weights.

    Attributes:
      axis: the axis of the weights; -1 if it has nothing to do with them, or in words
        what keeps it from being followed.
      size: the number of entries; one marks a value that is of one position of an axis
        which it has no more.
      start: the position of the first entry.
      step: the distance of two entries; zero if it is not known which position it is.
    """

    axis: int | str
    size: int
    start: int = 0
    step: int = 1


Label = tuple[Factor, ...]  # of one axis, from the slowest part to the fastest
Labels = tuple[Label, ...]  # of one value, per axis


def whole(axis: int | str, size: int) -> Label:
    """The label of an axis that is one part."""
    return () if size == 1 else (Factor(axis, size),)


def plain(shape: Sequence[int]) -> Labels:
    """The labels of a value that has nothing to do with the weights."""
    return tuple(whole(-1, size) for size in shape)


def _size(label: Label) -> int:
    return math.prod(factor.size for factor in label)


def marks_of(label: Label) -> Label:
    """The single positions that an axis, or one that is gone, was cut to."""
    return tuple(factor for factor in label if factor.size == 1)


def without_marks(label: Label) -> Label:
    """The parts of an axis itself."""
    return tuple(factor for factor in label if factor.size > 1)


def marked(labels: Sequence[Label], marks: Sequence[Factor]) -> Labels:
    """The labels with marks of positions, which the first axis carries."""
    if not labels:
        return ()
    own = dict[int | str, Factor]()
    for mark in (*marks, *marks_of(labels[0])):
        same = own.setdefault(mark.axis, mark) == mark
        if not same:  # some position, but which one is not known
            own[mark.axis] = Factor(mark.axis, 1, 0, 0)
    return ((*own.values(), *without_marks(labels[0])), *labels[1:])


def free(label: Label) -> bool:
    """Whether an axis has nothing to do with the weights."""
    return all(factor.axis == -1 for factor in label)


def lost(label: Label, why: str, size: int | None = None) -> Label:
    """The label of an axis that is no longer followed, unless it need not be."""
    size = _size(label) if size is None else size
    parts = without_marks(label)
    words = (f.axis for f in parts if isinstance(f.axis, str))
    name = -1 if free(parts) else next(words, why)
    return (*marks_of(label), *whole(name, size))


def is_lost(label: Label) -> bool:
    """Whether an axis could not be followed."""
    return any(isinstance(factor.axis, str) for factor in label)


def joined(labels: Sequence[Label], why: str) -> Label:
    """The label of an axis that several operands share."""
    marks = [mark for label in labels for mark in marks_of(label)]
    labels = [without_marks(label) for label in labels]
    bound = list(dict.fromkeys(label for label in labels if not free(label)))
    # what was added to known positions is of these positions, too
    clear = [label for label in bound if not is_lost(label)]
    found = [*clear, *bound, *labels][0]
    return marked([lost(found, why) if len(clear) > 1 else found], marks)[0]


def cut(label: Label, start: int, step: int, size: int, why: str) -> Label:
    """The label of every ``step``-th entry, from ``start``; both may be outside."""
    marks, parts = marks_of(label), without_marks(label)
    if free(parts) or (start, step, size) == (0, 1, _size(parts)):
        return label if size == _size(parts) else (*marks, *whole(-1, size))
    factor = parts[0]
    if len(parts) > 1 or isinstance(factor.axis, str):
        return lost(label, why, size)
    first = factor.start + factor.step * start
    return (*marks, Factor(factor.axis, size, first, factor.step * step))


def in_order(parts: Sequence[Labels], why: str) -> Label | None:
    """The label of a new axis along which single positions are put side by side.

    None if they are no positions.
    """
    marks = [{m.axis: m for label in one for m in marks_of(label)} for one in parts]
    axes = {axis for one in marks for axis in one}
    if not axes:
        return None
    (axis, *others), count = list(axes), len(parts)
    own = [one.get(axis) for one in marks]
    first = own[0]
    if others or first is None or None in own or len(own) < 2:
        return whole(why, count)
    starts = [mark.start for mark in own if mark is not None]
    step = starts[1] - starts[0]
    even = starts == [starts[0] + k * step for k in range(count)]
    known = all(mark is not None and mark.step for mark in own)
    if not (even and known and step):
        return whole(why, count)
    return (Factor(axis, count, starts[0], step),)
