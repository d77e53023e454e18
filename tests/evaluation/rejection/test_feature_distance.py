"""Distances to the nearest training images in the space of features."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from finetune.evaluation.rejection import feature_distance
from finetune.evaluation.rejection.feature_distance import compute_distances, normalize_features


def test_distance_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_distance, "_MAX_CHUNK_VALUES", 3 * 40)  # several chunks
    random = np.random.default_rng(0)
    features, others = random.normal(size=(10, 8)), random.normal(size=(40, 8))
    unit, reference = normalize_features(features), normalize_features(others)
    expected = NearestNeighbors(n_neighbors=5).fit(reference).kneighbors(unit)[0][:, 4]
    found = compute_distances(features, reference, num_neighbors=5)
    assert found == pytest.approx(expected, abs=1e-5)


def test_last_neighbour_counts_where_there_are_fewer() -> None:
    reference = normalize_features(np.array([[1.0, 0.0], [0.0, 1.0]]))
    found = compute_distances(np.array([[2.0, 0.0]]), reference, num_neighbors=5)
    assert found == pytest.approx([2**0.5])


def test_features_of_zero_have_a_distance() -> None:
    reference = normalize_features(np.eye(3))
    assert np.isfinite(compute_distances(np.zeros((1, 3)), reference)).all()
