"""Tests of the images of a run as arrays."""

from pathlib import Path

import numpy as np

from finetune.data.manifest import Manifest
from finetune.data.training_data import TrainingData
from finetune.types import Sample, Split


def test_training_data_has_paths_labels_and_counts_in_manifest_order() -> None:
    samples = (
        Sample("b/1.png", "bee", Split.TRAIN),
        Sample("a/2.png", "ant", Split.VAL),
        Sample("a/1.png", "ant", Split.TRAIN),
        Sample("b/3.png", "bee", Split.TRAIN),
    )
    data = TrainingData.from_manifest(Manifest(Path("root"), ("ant", "bee"), samples))
    assert list(data.train.paths) == [
        Path("root") / name for name in ("b/1.png", "a/1.png", "b/3.png")
    ]
    assert data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.val.labels.tolist() == [0]
    assert (len(data.train), len(data.val), len(data.test)) == (3, 1, 0)
    assert data.class_counts == (1, 2)
    assert (data.root, data.classes) == (Path("root"), ("ant", "bee"))
