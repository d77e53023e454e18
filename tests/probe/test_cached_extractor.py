"""The backbone is asked about each image once, whoever asks and whatever ends it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finetune.builders import Training
from finetune.data.images.lazy_image import open_image
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError, TrainingError
from finetune.models.classifier import normalise
from finetune.models.head import find_linear_head
from finetune.probe import extraction as features_module
from finetune.probe.cached_extractor import CachedFeatureExtractor
from finetune.probe.extractor import FeatureExtractor
from finetune.probe.feature_store import ViewSpec, extract_features
from finetune.probe.linear_probe import broadcast_weights
from finetune.types import Reporter
from tests.support.processes import open_group, run_on_ranks
from tests.support.runs import small_training

CPU = torch.device("cpu")


def training_in(place: Path, **settings: Any) -> Training:
    own = {"model__weights": str(place / "weights.pth"), "data__cache": str(place / "cache")}
    return small_training(place / "photos", **{**own, **settings})


def answers_of(training: Training) -> FeatureExtractor:
    network = training.module.classifier.eval().network
    head = find_linear_head(network)
    assert head is not None
    return FeatureExtractor(network, head)


def asked(training: Training, *, mirrored: bool = False) -> tuple[list[NDArray[np.float32]], int]:
    """Return the features of the training images, and how many had to be computed."""
    assert training.probe is not None
    source = CachedFeatureExtractor(
        answers_of(training),
        training.probe.extraction,
        device=CPU,
        rendezvous=None,
        reporter=Reporter(),
    )
    (views,) = source.extract(training.probe.train.paths, ViewSpec(flipped=mirrored))
    return [view[:] for view in views], source.num_computed


def expected(training: Training, *, mirrored: bool) -> NDArray[np.float32]:
    """Return the features image by image, by the network's own words."""
    assert training.probe is not None
    network: Any = training.module.classifier.eval().network
    spec = training.network.spec
    rows = []
    for path in training.probe.train.paths:
        pixels = torch.from_numpy(EvalTransform(spec)(open_image(path)).pixels)[None]
        images = normalise(pixels.flip(2) if mirrored else pixels, mean=spec.mean, std=spec.std)
        with torch.no_grad():
            rows.append(network.forward_head(network.forward_features(images), pre_logits=True))
    return np.asarray(torch.cat(rows).numpy())


def test_features_are_what_the_network_gives_its_head(place: Path) -> None:
    training = training_in(place)
    (seen, mirrored), computed = asked(training, mirrored=True)
    assert computed == len(seen) == 24
    np.testing.assert_allclose(seen, expected(training, mirrored=False), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mirrored, expected(training, mirrored=True), rtol=1e-4, atol=1e-5)
    assert np.abs(seen - mirrored).max() > 1e-3


def test_what_is_known_is_not_asked_again(place: Path) -> None:
    (first,), computed = asked(training_in(place))
    assert computed == 24
    (again,), computed = asked(training_in(place, imbalance__strategy="weighted", seed=7))
    assert computed == 0
    np.testing.assert_array_equal(again, first)
    # another view is another question
    (seen, _), computed = asked(training_in(place), mirrored=True)
    assert computed == 24
    np.testing.assert_allclose(seen, first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"model__pretrained_cfg": {"mean": [0.4, 0.4, 0.4]}},
        {"data__image_size": 40},
        {"model__kwargs": {"global_pool": "max"}},
        {"trainer__precision": "bf16-mixed"},
    ],
    ids=["mean", "size", "network", "precision"],
)
def test_another_preprocessing_is_another_question(change: dict[str, Any], place: Path) -> None:
    asked(training_in(place))
    assert asked(training_in(place, **change))[1] == 24


def test_what_is_known_is_not_written_again(place: Path) -> None:
    def sizes() -> dict[str, int]:
        files = (place / "cache").rglob("arrays.bin")
        return {file.parent.name: file.stat().st_size for file in files}

    asked(training_in(place))
    before = sizes()
    assert asked(training_in(place), mirrored=True)[1] == 24
    after = sizes()
    assert len(after) == 2
    assert before.items() <= after.items()


def test_another_backbone_is_another_question(place: Path) -> None:
    asked(training_in(place))
    training = training_in(place)
    with torch.no_grad():
        next(iter(training.module.classifier.network.parameters())).mul_(1.01)
    assert asked(training)[1] == 24


def test_only_an_image_that_has_changed_is_asked_about_again(place: Path) -> None:
    (before,), _ = asked(training_in(place))
    training = training_in(place)
    assert training.probe is not None
    changed, other = training.probe.train.paths[3], training.probe.train.paths[20]
    changed.write_bytes(other.read_bytes())
    (after,), computed = asked(training)
    assert computed == 1
    np.testing.assert_allclose(after[3], before[20], rtol=1e-4, atol=1e-5)
    rest = np.arange(24) != 3
    np.testing.assert_array_equal(after[rest], before[rest])


def test_what_was_answered_before_an_error_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "_BATCH_SIZE", 4)
    monkeypatch.setattr(features_module, "_MAX_BATCHES_PER_WRITE", 1)
    training = training_in(place)
    assert training.probe is not None
    broken = training.probe.train.paths[13]
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        asked(training)
    broken.write_bytes(whole)
    assert asked(training)[1] == 12


@pytest.mark.parametrize("most", [5, 0], ids=["some fit", "none fits"])
def test_a_batch_that_does_not_fit_is_halved(
    most: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,), _ = asked(training_in(place, data__cache=str(place / "other")))
    sizes = []

    def short_of_memory(answers: Any, batches: Any, **more: Any) -> Iterator[Any]:
        for batch in batches:
            sizes.append(len(batch["image"]))
            if sizes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            yield from extract_features(answers, [batch], **more)

    monkeypatch.setattr(features_module, "extract_features", short_of_memory)
    if not most:
        with pytest.raises(TrainingError, match=r"does not take even 1 image.*probe\.enabled=off"):
            asked(training_in(place))
        return
    (found,), _ = asked(training_in(place))
    assert max(size for size in sizes if size <= most) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_answers_that_are_no_numbers_are_an_error(place: Path) -> None:
    training = training_in(place)
    with torch.no_grad():
        next(iter(training.module.classifier.network.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"no numbers in trainer\.precision=32-true"):
        asked(training)


def test_several_images_are_read_from_the_disk_at_a_time(place: Path) -> None:
    training = training_in(place)
    asked(training)
    assert training.probe is not None
    plan = training.probe.extraction
    source = CachedFeatureExtractor(
        answers_of(training), plan, device=CPU, rendezvous=None, reporter=Reporter()
    )
    ((seen,),) = source.extract(training.probe.train.paths)
    assert seen.shape == (24, seen[:].shape[1])
    np.testing.assert_array_equal(seen[5:9], seen[:][5:9])
    assert isinstance(seen._table.base, np.memmap) or isinstance(seen._table, np.memmap)


def shared(rank: int, place: Path, settings: dict[str, Any]) -> tuple[list[Any], int]:
    """Ask on several ranks, of which rank 0 alone holds the right weights."""
    training = training_in(place, **settings)
    assert training.probe is not None
    classifier = training.module.classifier.eval()
    if rank > 0:
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.zero_()
    with open_group() as met:
        broadcast_weights(classifier)
        source = CachedFeatureExtractor(
            answers_of(training),
            training.probe.extraction,
            device=CPU,
            rendezvous=met,
            reporter=Reporter(),
        )
        (views,) = source.extract(training.probe.train.paths, ViewSpec(flipped=True))
        return [view[:] for view in views], source.num_computed


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_share_the_images_to_the_same_bits(count: int, place: Path) -> None:
    alone, _ = asked(training_in(place), mirrored=True)
    settings = {"trainer__devices": count, "data__cache": str(place / "other")}
    first, *others = run_on_ranks(count, shared, place, settings)
    assert first[1] == 24
    for view, of_one in zip(first[0], alone, strict=True):
        np.testing.assert_array_equal(view, of_one)
    assert all(views == [] for views, _ in others)
    again, *_ = run_on_ranks(count, shared, place, settings)
    assert again[1] == 0


def test_parts_of_an_image_are_views_of_their_own(place: Path) -> None:
    training = training_in(place)
    assert training.probe is not None
    source = CachedFeatureExtractor(
        answers_of(training),
        training.probe.extraction,
        device=CPU,
        rendezvous=None,
        reporter=Reporter(),
    )
    paths = training.probe.train.paths
    found = [view[:] for view in source.extract(paths, ViewSpec(flipped=True, num_crops=5))[0]]
    corners = [((0.5, 0.5), False), ((0.0, 0.0), True), ((1.0, 1.0), False), ((1.0, 0.0), True)]
    for number, (anchor, turned) in enumerate([*corners, ((0.0, 1.0), False)]):
        with torch.inference_mode():
            rows = [asked_about_part(training, path, anchor, turned=turned) for path in paths]
        expected_rows = torch.cat(rows).numpy()
        np.testing.assert_allclose(found[2 + number], expected_rows, rtol=1e-4, atol=1e-5)
    # what is known of the whole images is not asked again, and the other way round
    before = source.num_computed
    source.extract(paths, ViewSpec(flipped=True))
    source.extract(paths, ViewSpec(flipped=True, num_crops=1))
    assert source.num_computed == before
    source.extract(paths, ViewSpec(num_crops=2))
    assert source.num_computed == before + len(paths)


def asked_about_part(
    training: Training, path: Path, anchor: tuple[float, float], *, turned: bool
) -> Tensor:
    """Return the features (1, D) of four fifths of an image each way, cut out by hand."""
    spec = training.network.spec
    with Image.open(path) as image:
        full = image.convert("RGB")
    width, height = round(0.8 * full.width), round(0.8 * full.height)
    left = round(anchor[0] * (full.width - width))
    top = round(anchor[1] * (full.height - height))
    part = full.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(EvalTransform(spec).to_pixels(part))[None]
    network = training.module.classifier.network
    images = normalise(pixels.flip(2) if turned else pixels, mean=spec.mean, std=spec.std)
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return features
