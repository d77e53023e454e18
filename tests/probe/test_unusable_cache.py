"""Feature extraction without a cache on disk: the same features, one warning, no waiting rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from finetune.builders import Training
from finetune.distributed.collectives import broadcast_weights
from finetune.errors import StorageError
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extractor import create_feature_extractor
from finetune.probe.features.views import ViewSpec
from tests.support.helpers import RecordingReporter, list_tree, mount_tiny_disk
from tests.support.processes import open_group, run_on_ranks
from tests.support.runs import create_small_training

FLIPPED = ViewSpec(flipped=True)


def training_in(place: Path, cache: Path, **settings: Any) -> Training:
    settings["model__weights"] = str(place / "weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(cache))
        return create_small_training(place / "photos", **settings)


def extract(
    training: Training, *, depth: int = 1, rendezvous: Any = None
) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Return the features of the training images by view, and the warnings."""
    assert training.probe is not None
    recorder = RecordingReporter()
    extractor = CachedFeatureExtractor(
        create_feature_extractor(training.module.classifier.eval().network, depth=depth),
        training.probe.extraction,
        device=torch.device("cpu"),
        rendezvous=rendezvous,
        reporter=recorder,
    )
    outputs = extractor.extract(training.probe.train.paths, FLIPPED)
    return [view[:] for view in outputs[0]], recorder.warnings


@contextmanager
def open_unusable_cache(place: Path, kind: str) -> Iterator[Path]:
    """Yield a folder that cannot be created, or is on a disk that holds a part of the features."""
    if kind == "file":
        (place / "file").touch()
        yield place / "file"
    elif kind == "proc":
        yield Path("/proc/finetune-cache")
    else:
        with mount_tiny_disk(place / "disk", size=kind) as disk:
            yield disk / "cache"


KINDS = ("file", "proc", "4k", "16k", "20k", "24k", "28k", "32k")


@pytest.mark.parametrize("kind", KINDS)
def test_features_without_cache_are_the_same(kind: str, place: Path) -> None:
    expected, warnings = extract(training_in(place, place / "cache"))
    assert warnings == []
    with open_unusable_cache(place, kind) as cache:
        before = list_tree(place / "photos")
        views, warnings = extract(training_in(place, cache))
        assert len(warnings) == 1
        assert f"The cache in {cache}/pixels cannot be used: " in warnings[0]
        assert list_tree(place / "photos") == before
    assert len(views) == 2
    for view, other in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view, other)


@pytest.mark.parametrize("kind", ["file", "24k"])
def test_features_without_cache_are_computed_once_in_a_command(kind: str, place: Path) -> None:
    recorder = RecordingReporter()
    with open_unusable_cache(place, kind) as cache:
        computed = []
        for _ in range(3):
            training = training_in(place, cache)
            assert training.probe is not None
            extractor = CachedFeatureExtractor(
                create_feature_extractor(training.module.classifier.eval().network),
                training.probe.extraction,
                device=torch.device("cpu"),
                rendezvous=None,
                reporter=recorder,
            )
            extractor.extract(training.probe.train.paths, FLIPPED)
            computed.append(extractor.num_computed)
    assert computed == [24, 0, 0]
    assert len(recorder.warnings) == 1


def test_activations_without_cache_name_the_way_out(place: Path) -> None:
    (place / "file").touch()
    training = training_in(place, place / "file", probe__enabled="on")
    with pytest.raises(StorageError, match=r"file is a file.*FINETUNE_CACHE.*probe\.depth=1"):
        extract(training, depth=2)


def extract_on_rank(rank: int, place: Path, cache: Path) -> tuple[list[Any], list[str]]:
    with open_group() as rendezvous:
        training = training_in(place, cache)
        broadcast_weights(training.module.classifier)
        return extract(training, rendezvous=rendezvous)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "28k"])
def test_two_ranks_without_cache_get_the_same_features(kind: str, place: Path) -> None:
    expected, _ = extract(training_in(place, place / "cache"))
    with open_unusable_cache(place, kind) as cache:
        (views, warnings), (others, other_warnings) = run_on_ranks(2, extract_on_rank, place, cache)
    assert (len(warnings), others, other_warnings) == (1, [], [])
    for view, other in zip(views, expected, strict=True):
        np.testing.assert_allclose(view, other, rtol=1e-4, atol=1e-5)
