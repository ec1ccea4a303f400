"""Ids of indices: united, merged, kept, removed, against sets in plain Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nettrim_jax.structure.ids import CHANNEL, VARIES, Ids


def same(ids, groups, count):
    """Whether the classes are these."""
    roots = ids.find(np.arange(count, dtype=np.int32))
    mine = {}
    for k, root in enumerate(roots.tolist()):
        mine.setdefault(root, set()).add(k)
    return sorted(map(sorted, mine.values())) == sorted(map(sorted, groups))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_classes_are_those_of_a_loop(pairs):
    ids = Ids()
    ids.fresh(20)
    groups = [{k} for k in range(20)]
    for a, b in pairs:
        one = next(g for g in groups if a in g)
        other = next(g for g in groups if b in g)
        if one is not other:
            groups.remove(other)
            one |= other
    for k in range(0, len(pairs), 7):  # several at a time, as axes are
        some = np.array(pairs[k : k + 7], np.int32).reshape(-1, 2)
        ids.unite(some[:, 0], some[:, 1])
    assert same(ids, groups, 20)


def test_two_names_for_one_product_have_the_same_parts():
    ids = Ids()
    a, b, c, d = (ids.fresh(n) for n in (2, 3, 2, 3))
    one, other, free = ids.either(a, b), ids.either(c, d), ids.fresh(6)
    ids.unite(free, one.ravel())
    ids.unite(other.ravel(), free)
    assert (ids.find(a) == ids.find(c)).all() and (ids.find(b) == ids.find(d)).all()
    assert len(np.unique(ids.find(a))) == 2
    known, left, right = ids.parts(free)
    assert known.all()
    assert (left == np.repeat(ids.find(a), 3)).all()
    assert (right == np.tile(ids.find(b), 2)).all()


def test_a_product_laid_out_in_two_ways_goes_as_one():
    ids = Ids()
    a, b, c, d = (ids.fresh(n) for n in (3, 4, 4, 3))
    ids.unite(ids.either(a, b).ravel(), ids.either(c, d).ravel())
    for parts in (a, b, c, d):
        assert len(np.unique(ids.find(parts))) == 1


def test_what_stands_for_two_goes_with_either_and_keeps_both():
    ids = Ids()
    a, b = ids.fresh(2), ids.fresh(3)
    both = ids.either(a, b)
    removed = np.zeros(ids.count, bool)
    removed[a[0]] = True
    removed = ids.spread(removed)
    assert removed[both].tolist() == [[True] * 3, [False] * 3]
    ids.keep(both[1, 2:], "needed")
    settled = ids.settle()
    kept = settled.why > 0
    assert kept[a].tolist() == [False, True] and kept[b].tolist() == [False] * 2 + [
        True
    ]
    assert ids.reasons[settled.why[a[1]] - 1] == "needed"
    # the first part of a product both of whose parts stay
    assert kept[both].tolist() == [[False] * 3, [False, False, True]]


def test_parts_are_inferred_from_products():
    ids = Ids()
    a, b = ids.fresh(2), ids.fresh(3)
    both = ids.either(a, b)
    known = np.zeros(ids.count, bool)
    known[both] = True
    marks = np.zeros(ids.count, bool)
    marks[both[1]] = True
    found = ids.inferred(marks, known)
    assert found[a].tolist() == [False, True] and not found[b].any()
    marks = np.zeros(ids.count, bool)
    marks[both[:, 2]] = True
    found = ids.inferred(marks, known)
    assert found[b].tolist() == [False, False, True] and not found[a].any()


def test_the_first_reason_and_all_roles_are_those_of_the_class():
    ids = Ids()
    a = ids.fresh(3)
    ids.keep(a[2:], "one")
    ids.keep(a[:1], "two")
    ids.mark(a[1:2], CHANNEL)
    ids.mark(a[:1], VARIES)
    ids.unite(a[:2], a[1:])
    settled = ids.settle()
    root = settled.root[a[0]]
    assert (settled.root[a] == root).all()
    assert ids.reasons[settled.why[root] - 1] == "one"
    assert settled.roles[root] == CHANNEL | VARIES


def test_many_ids_are_few_calls():
    ids = Ids()
    axes = [ids.fresh(50_000) for _ in range(20)]
    for one, other in zip(axes, axes[1:], strict=False):
        ids.unite(one, other)
    ids.unite(axes[3][1:], axes[7][:-1])  # a chain through all of them
    assert len(np.unique(ids.find(axes[-1]))) == 1
