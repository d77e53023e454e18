"""Images are joined into groups; of pairs only those are chosen that join something."""

import numpy as np

from finetune.audit.union_find import UnionFind


def test_what_is_joined_is_one_group() -> None:
    joined = UnionFind()
    assert joined.merge(7, 2)
    assert joined.merge(2, 9)
    assert not joined.merge(9, 7), "they were already"
    assert joined.merge(0, 1)
    assert sorted(joined.list_groups()) == [[0, 1], [2, 7, 9]]


def test_a_forest_joins_nothing_twice() -> None:
    joined = UnionFind()
    joined.merge(0, 1)
    pairs = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [2, 3], [4, 1]])
    assert joined.find_spanning_forest(pairs) == [1, 3, 4]
    assert joined.list_groups() == [[0, 1]], "to choose joins nothing"
    assert joined.find_spanning_forest(np.empty((0, 2), np.int64)) == []
