"""Images joined into groups, pair by pair."""

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

Rows = NDArray[np.int64]


class UnionFind:
    """Groups of images, by their rows; what was never joined is alone."""

    def __init__(self) -> None:
        self._sets = DisjointSet()

    def merge(self, one: int, other: int) -> bool:
        """Put two images and all that they are joined with into one group; tell if they were not.

        Args:
            one: A row.
            other: A row.
        """
        self._sets.add(one)
        self._sets.add(other)
        return bool(self._sets.merge(one, other))

    def find_spanning_forest(self, pairs: Rows) -> list[int]:
        """Return which pairs (P, 2) would join what is not joined yet, none of them in vain."""
        trial = UnionFind()
        return [
            number
            for number, (one, other) in enumerate(pairs.tolist())
            if trial.merge(self._find_root(one), self._find_root(other))
        ]

    def list_groups(self) -> list[list[int]]:
        """Return the rows of each group, ascending."""
        return [sorted(group) for group in self._sets.subsets()]

    def _find_root(self, row: int) -> int:
        try:
            return int(self._sets[row])
        except KeyError:  # an image that is not joined to any
            return row
