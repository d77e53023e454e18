"""Images are joined into groups; of pairs only those are chosen that join something."""

import numpy as np

from finetune.audit.union_find import Joined


def test_what_is_joined_is_one_group() -> None:
    joined = Joined()
    assert joined.join(7, 2)
    assert joined.join(2, 9)
    assert not joined.join(9, 7), "they were already"
    assert joined.join(0, 1)
    assert sorted(joined.groups()) == [[0, 1], [2, 7, 9]]


def test_a_forest_joins_nothing_twice() -> None:
    joined = Joined()
    joined.join(0, 1)
    pairs = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [2, 3], [4, 1]])
    assert joined.forest(pairs) == [1, 3, 4]
    assert joined.groups() == [[0, 1]], "to choose joins nothing"
    assert joined.forest(np.empty((0, 2), np.int64)) == []
