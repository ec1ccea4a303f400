"""Numbers of indices of axes, which of them go together, and which have to stay.

Every index of every axis has an id. Ids that can only be removed together are united.
Where axes are merged, an id stands for two: it is removed if either of them is. Some
ids have to stay, with the reason.

Knows arrays; knows no program.
"""

from typing import NamedTuple

import numpy as np

# roles, as bits; the first three are those of parts, too
CHANNEL, BATCHED, INNER, STATE, VARIES, MIXED = 1, 2, 4, 8, 16, 32
OF_PARTS = CHANNEL | BATCHED | INNER
NOWHERE = -1

Int = np.ndarray  # int32
_ROOM = 4096


class Settled(NamedTuple):
    """What is known of all ids once a program was walked through.

    Attributes:
      root: the id that stands for each class of united ids.
      why: of each root, one plus the position of the reason why it has to stay; 0 if
        it may go.
      roles: of each root, its roles as bits.
      loop: of each root, the loop in which all of its uses are.
    """

    root: Int
    why: Int
    roles: Int
    loop: Int


class Ids:
    """Ids of indices, united as a program asks for it."""

    def __init__(self):
        self.count = 0
        self.reasons: list[str] = []
        self._parent = np.arange(_ROOM, dtype=np.int32)
        self._parts = np.full((2, _ROOM), NOWHERE, np.int32)
        # of a root, an id of its class that stands for two others
        self._both = np.full(_ROOM, NOWHERE, np.int32)
        self._why = np.zeros(_ROOM, np.int32)
        self._roles = np.zeros(_ROOM, np.uint8)
        self._loop = np.full(_ROOM, NOWHERE, np.int32)

    def fresh(self, count: int) -> Int:
        """New ids, each alone."""
        first, self.count = self.count, self.count + count
        size = len(self._parent)
        if self.count > size:
            more = max(self.count, 2 * size) - size
            grown = np.arange(size, size + more, dtype=np.int32)
            self._parent = np.concatenate([self._parent, grown])
            self._parts = np.pad(
                self._parts, ((0, 0), (0, more)), constant_values=NOWHERE
            )
            self._both = np.pad(self._both, (0, more), constant_values=NOWHERE)
            self._why = np.pad(self._why, (0, more))
            self._roles = np.pad(self._roles, (0, more))
            self._loop = np.pad(self._loop, (0, more), constant_values=NOWHERE)
        return np.arange(first, self.count, dtype=np.int32)

    def either(self, one: Int, other: Int) -> Int:
        """New ids that are removed if one or the other of two ids is, ``[n, m]``."""
        new = self.fresh(one.size * other.size)
        self._parts[0, new] = np.repeat(one, other.size)
        self._parts[1, new] = np.tile(other, one.size)
        self._both[new] = new
        return new.reshape(one.size, other.size)

    def find(self, ids: Int) -> Int:
        """The roots of some ids."""
        parent = self._parent
        roots = parent[ids]
        while True:
            above = parent[roots]
            if np.array_equal(above, roots):
                parent[ids] = roots
                return roots
            # twice as far up each time, however long a chain is
            parent[ids], parent[roots] = above, parent[above]
            roots = above

    def unite(self, one: Int, other: Int) -> None:
        """Ids of the same place are removed together from here on."""
        waiting = [(one, other)]
        while waiting:
            a, b = waiting.pop()
            if a is b:
                continue
            joined = []
            while True:
                a, b = self.find(a), self.find(b)
                differ = a != b
                if not differ.any():
                    break
                a, b = a[differ], b[differ]
                high, low = np.maximum(a, b), np.minimum(a, b)
                # of several links of one root the last wins; the others come next
                self._parent[high] = low
                joined.append(np.concatenate([high, low]))
            if joined:
                waiting += self._pairs(np.concatenate(joined))

    def _pairs(self, once: Int) -> list[tuple[Int, Int]]:
        """Ids to unite because those that stand for two were."""
        once = np.unique(once[self._both[once] != NOWHERE])
        if not once.size:
            return []
        mine, roots = self._both[once], self.find(once)
        bare = self._both[roots] == NOWHERE
        self._both[roots[bare]] = mine[bare]
        kept = self._both[roots]
        differ = mine != kept
        if not differ.any():
            return []
        mine, kept = mine[differ], kept[differ]
        return [(self._parts[k, mine], self._parts[k, kept]) for k in (0, 1)]

    def parts(self, ids: Int) -> tuple[Int, Int, Int]:
        """Which ids stand for two others, and the roots of these."""
        both = self._both[self.find(ids)]
        known = both != NOWHERE
        one, other = (self.find(self._parts[k, both[known]]) for k in (0, 1))
        return known, one, other

    def keep(self, ids: Int, why: str) -> None:
        """These ids have to stay, for this reason unless there was one before."""
        if why not in self.reasons:
            self.reasons.append(why)
        number = self.reasons.index(why) + 1
        self._why[ids] = np.where(self._why[ids], self._why[ids], number)

    def mark(self, ids: Int, role: int) -> None:
        """Notes a role of some ids."""
        self._roles[ids] |= role

    def used(self, ids: Int, loop: int) -> None:
        """Notes a use within a loop; uses in several are one role."""
        before = self._loop[ids]
        self._roles[ids] |= np.where(
            (before != NOWHERE) & (before != loop), MIXED, 0
        ).astype(np.uint8)
        self._loop[ids] = loop

    def pairs(self) -> tuple[Int, Int, Int]:
        """The roots that stand for two ids, and the roots of these."""
        roots = np.flatnonzero(self._parent[: self.count] == np.arange(self.count))
        roots = roots[self._both[roots] != NOWHERE].astype(np.int32)
        _, one, other = self.parts(roots)
        return roots, one, other

    def settle(self) -> Settled:
        """What is known of all ids; what stands for two stays if and as both do."""
        every = np.arange(self.count, dtype=np.int32)
        root = self.find(every)
        last = len(self.reasons) + 1
        why = np.full(self.count, last, np.int32)
        own = self._why[: self.count]
        np.minimum.at(why, root, np.where(own, own, last))
        roles = np.zeros(self.count, np.uint8)
        np.bitwise_or.at(roles, root, self._roles[: self.count])
        loop = np.full(self.count, NOWHERE, np.int32)
        np.maximum.at(loop, root, self._loop[: self.count])
        least = np.full(self.count, np.iinfo(np.int32).max, np.int32)
        known = self._loop[: self.count] != NOWHERE
        np.minimum.at(least, root[known], self._loop[: self.count][known])
        roles[(loop != NOWHERE) & (least != loop)] |= MIXED
        both, one, other = self.pairs()
        while True:
            before = why.copy(), roles.copy()
            for part in (one, other):
                np.minimum.at(why, part, why[both])
                np.bitwise_or.at(roles, part, roles[both] & OF_PARTS)
            # what stands for two stays as well if neither of them may go
            np.minimum.at(why, both, np.maximum(why[one], why[other]))
            if all(map(np.array_equal, before, (why, roles))):
                break
        why[why == last] = 0
        return Settled(root, why, roles, loop)

    def spread(self, marks: np.ndarray) -> np.ndarray:
        """What is marked, by root, and all that stands for a marked one."""
        both, one, other = self.pairs()
        while True:
            before = marks.copy()
            marks[both] |= marks[one] | marks[other]
            if np.array_equal(before, marks):
                return marks

    def to_parts(self, marks: np.ndarray) -> np.ndarray:
        """What is marked, by root, and both parts of what stands for two and is."""
        both, one, other = self.pairs()
        while True:
            before = marks.copy()
            for part in (one, other):
                np.logical_or.at(marks, part, marks[both])
            if np.array_equal(before, marks):
                return marks

    def inferred(self, marks: np.ndarray, known: np.ndarray) -> np.ndarray:
        """What must be marked, by root, if of the known ones just these are.

        An id that stands in pairs is marked if all of its known pairs are.
        """
        both, one, other = self.pairs()
        known = known.copy()
        while True:
            before, seen = marks.copy(), known[both]
            for part in (one[seen], other[seen]):
                every = np.ones(self.count, bool)
                np.logical_and.at(every, part, marks[both[seen]])
                mine = np.unique(part)
                marks[mine] |= every[mine]
                known[mine] = True
            marks = self.spread(marks)
            if np.array_equal(before, marks):
                return marks
