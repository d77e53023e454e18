"""Cached feature extraction: stored features are reused, and split across ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from finetune.builders import Training
from finetune.data.images.decode import open_image
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.distributed.collectives import broadcast_weights
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import DataError, TrainingError
from finetune.models import torchvision_models
from finetune.models.classifier import normalise
from finetune.probe.features import cached_extractor as cached_extractor_module
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extraction_plan import ExtractionPlan
from finetune.probe.features.extractor import create_feature_extractor, extract_features
from finetune.probe.features.views import ViewSpec
from finetune.types import PreprocessSpec, ReadOptions, Reporter
from tests.support.processes import open_group, run_on_ranks
from tests.support.runs import create_small_training

CPU = torch.device("cpu")


def training_in(place: Path, **settings: Any) -> Training:
    own = {"model__weights": str(place / "weights.pth"), "data__cache": str(place / "cache")}
    return create_small_training(place / "photos", **{**own, **settings})


def make_extractor(
    training: Training, *, rendezvous: Rendezvous | None = None
) -> CachedFeatureExtractor:
    assert training.probe is not None
    return CachedFeatureExtractor(
        create_feature_extractor(training.module.classifier.eval().network),
        training.probe.extraction,
        device=CPU,
        rendezvous=rendezvous,
        reporter=Reporter(),
    )


def extract(
    training: Training, *, flipped: bool = False, rendezvous: Rendezvous | None = None
) -> tuple[list[NDArray[np.float32]], int]:
    """Return the features of the training images, and how many images had to be computed."""
    assert training.probe is not None
    extractor = make_extractor(training, rendezvous=rendezvous)
    (views,) = extractor.extract(training.probe.train.paths, ViewSpec(flipped=flipped))
    return [view[:] for view in views], extractor.num_computed


def compute_reference(training: Training, *, flipped: bool) -> NDArray[np.float32]:
    """Return the features image by image, from the network's own methods."""
    assert training.probe is not None
    network: Any = training.module.classifier.eval().network
    spec = training.network.spec
    rows = []
    for path in training.probe.train.paths:
        pixels = torch.from_numpy(EvalTransform(spec)(open_image(path)).pixels)[None]
        images = normalise(pixels.flip(2) if flipped else pixels, mean=spec.mean, std=spec.std)
        with torch.no_grad():
            rows.append(network.forward_head(network.forward_features(images), pre_logits=True))
    return np.asarray(torch.cat(rows).numpy())


def test_extract_returns_the_head_inputs_of_each_view(place: Path) -> None:
    training = training_in(place)
    (plain, flipped), num_computed = extract(training, flipped=True)
    assert num_computed == len(plain) == 24
    for features, is_flipped in ((plain, False), (flipped, True)):
        reference = compute_reference(training, flipped=is_flipped)
        np.testing.assert_allclose(features, reference, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - flipped).max() > 1e-3


def test_extract_stored_features_are_reused_except_for_new_views(place: Path) -> None:
    (first,), num_computed = extract(training_in(place))
    assert num_computed == 24
    (second,), num_computed = extract(training_in(place, imbalance__strategy="weighted", seed=7))
    assert num_computed == 0
    np.testing.assert_array_equal(second, first)
    (plain, _), num_computed = extract(training_in(place), flipped=True)
    assert num_computed == 24
    np.testing.assert_allclose(plain, first, rtol=1e-5, atol=1e-6)


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
def test_extract_other_preprocessing_or_precision_computes_again(
    change: dict[str, Any], place: Path
) -> None:
    extract(training_in(place))
    assert extract(training_in(place, **change))[1] == 24


def test_extract_new_view_does_not_write_stored_views_again(place: Path) -> None:
    def measure_stores() -> dict[str, int]:
        files = (place / "cache").rglob("arrays.bin")
        return {file.parent.name: file.stat().st_size for file in files}

    extract(training_in(place))
    before = measure_stores()
    assert extract(training_in(place), flipped=True)[1] == 24
    after = measure_stores()
    assert len(after) == 2
    assert before.items() <= after.items()


def test_extract_new_view_does_not_pass_stored_views_through_the_network(place: Path) -> None:
    training = training_in(place)
    extract(training)
    num_rows: list[int] = []
    head = training.module.classifier.network.get_submodule("fc")
    head.register_forward_hook(lambda _, inputs, output: num_rows.append(len(inputs[0])))
    (plain, flipped), _ = extract(training, flipped=True)
    num_to_compare_folding = 2 * 2
    assert sum(num_rows) == 24 + num_to_compare_folding
    np.testing.assert_allclose(
        flipped, compute_reference(training, flipped=True), rtol=1e-4, atol=1e-5
    )
    assert len(plain) == 24


def test_extract_other_backbone_weights_computes_again(place: Path) -> None:
    extract(training_in(place))
    training = training_in(place)
    with torch.no_grad():
        next(iter(training.module.classifier.network.parameters())).mul_(1.01)
    assert extract(training)[1] == 24


def test_extract_changed_file_is_computed_again(place: Path) -> None:
    (before,), _ = extract(training_in(place))
    training = training_in(place)
    assert training.probe is not None
    changed, other = training.probe.train.paths[3], training.probe.train.paths[20]
    changed.write_bytes(other.read_bytes())
    (after,), num_computed = extract(training)
    assert num_computed == 1
    np.testing.assert_allclose(after[3], before[20], rtol=1e-4, atol=1e-5)
    is_unchanged = np.arange(24) != 3
    np.testing.assert_array_equal(after[is_unchanged], before[is_unchanged])


def test_extract_after_an_error_resumes_from_the_stored_features(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_extractor_module, "_CPU_BATCH_SIZE", 4)
    monkeypatch.setattr(cached_extractor_module, "_MAX_BATCHES_PER_WRITE", 1)
    training = training_in(place)
    assert training.probe is not None
    broken = training.probe.train.paths[13]
    content = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=f"{broken.name}.*empty"):
        extract(training)
    broken.write_bytes(content)
    assert extract(training)[1] == 12


@pytest.mark.runs
@pytest.mark.parametrize("max_images", [5, 0], ids=["small batch fits", "no batch fits"])
def test_extract_out_of_memory_halves_the_batch_or_raises(
    max_images: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,), _ = extract(training_in(place, data__cache=str(place / "other")))
    sizes = []

    def extract_with_little_memory(extractor: Any, batches: Any, **options: Any) -> Iterator[Any]:
        for batch in batches:
            sizes.append(len(batch["image"]))
            if sizes[-1] > max_images:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            yield from extract_features(extractor, [batch], **options)

    monkeypatch.setattr(cached_extractor_module, "extract_features", extract_with_little_memory)
    if not max_images:
        with pytest.raises(TrainingError, match=r"\b1 image.*--image-size.*probe\.enabled=off"):
            extract(training_in(place))
        return
    (features,), _ = extract(training_in(place))
    assert max(size for size in sizes if size <= max_images) == 4
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_extract_features_not_finite_raises_training_error(place: Path) -> None:
    training = training_in(place)
    with torch.no_grad():
        next(iter(training.module.classifier.network.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"NaN.*trainer\.precision=32-true.*probe\.enabled=off"):
        extract(training)


def test_extract_returns_memory_mapped_features(place: Path) -> None:
    training = training_in(place)
    extract(training)
    assert training.probe is not None
    ((features,),) = make_extractor(training).extract(training.probe.train.paths)
    assert features.shape == (24, features[:].shape[1])
    np.testing.assert_array_equal(features[5:9], features[:][5:9])
    np.testing.assert_array_equal(features[np.array([7, 2])], features[:][[7, 2]])
    assert isinstance(features._table.base, np.memmap) or isinstance(features._table, np.memmap)


def fill_deterministically(network: nn.Module) -> nn.Module:
    """Fill all parameters and statistics with exact values that no generator is needed for."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                values = torch.arange(tensor.numel()) % 17 / 16 - 0.5
                tensor.copy_(values.reshape(tensor.shape))
    return network.eval()


# computed by release 0.1, whose feature stores on disk must stay valid
@pytest.mark.runs
@pytest.mark.parametrize(
    ("backbone", "spec", "digest"),
    [
        (
            "test_resnet",
            PreprocessSpec(
                (3, 64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.95
            ),
            "8dee8a2b31742ce4",
        ),
        (
            "test_vit",
            PreprocessSpec((3, 160, 160), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.95),
            "3642466cb50a89da",
        ),
        (
            "googlenet",
            PreprocessSpec((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875),
            "edd8fca61e9163cb",
        ),
        (
            "alexnet",
            PreprocessSpec((3, 224, 224), (0.5,) * 3, (0.25,) * 3),
            "662aea461cb86f46",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_store_digest_is_that_of_earlier_releases(
    backbone: str, spec: PreprocessSpec, digest: str, tmp_path: Path
) -> None:
    torchvision_models.register()
    network = fill_deterministically(timm.create_model(backbone, num_classes=3))
    plan = ExtractionPlan(
        model_args_json='{"drop_rate": 0.1}',
        spec=spec,
        precision="bf16-mixed",
        root=tmp_path,
        owner="photos",
        limit_bytes=10**9,
        num_workers=0,
        options=ReadOptions(max_pixels=10**6),
    )
    extractor = CachedFeatureExtractor(
        create_feature_extractor(network), plan, device=CPU, rendezvous=None, reporter=Reporter()
    )
    assert extractor._digest == digest


def test_view_names_are_those_of_earlier_releases() -> None:
    assert ViewSpec(flipped=True, num_crops=2).names == (
        "seen", "mirrored", "0.8-at-0.5-0.5", "0.8-at-0-0-mirrored",
    )  # fmt: skip
    assert ViewSpec(num_crops=2).names == ("seen", "0.8-at-0.5-0.5", "0.8-at-0-0")


def test_output_names_are_those_of_earlier_releases() -> None:
    network = timm.create_model("test_resnet", num_classes=3).eval()
    assert create_feature_extractor(network).output_names == ("features",)
    names = create_feature_extractor(network, depth=2).output_names
    assert names == ("features", "maps-layer3_0_act3")


def extract_on_rank(rank: int, place: Path, settings: dict[str, Any]) -> tuple[list[Any], int]:
    """Extract on several ranks, of which rank 0 alone has the right weights."""
    training = training_in(place, **settings)
    classifier = training.module.classifier.eval()
    if rank > 0:
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.zero_()
    with open_group() as rendezvous:
        broadcast_weights(classifier)
        return extract(training, flipped=True, rendezvous=rendezvous)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_extract_on_several_ranks_is_bit_identical_to_one(count: int, place: Path) -> None:
    expected, _ = extract(training_in(place), flipped=True)
    settings = {"trainer__devices": count, "data__cache": str(place / "other")}
    first, *others = run_on_ranks(count, extract_on_rank, place, settings)
    assert first[1] == 24
    for actual_view, expected_view in zip(first[0], expected, strict=True):
        np.testing.assert_array_equal(actual_view, expected_view)
    assert all(views == [] for views, _ in others)
    again, *_ = run_on_ranks(count, extract_on_rank, place, settings)
    assert again[1] == 0


def test_extract_crops_are_views_that_are_stored_separately(place: Path) -> None:
    training = training_in(place)
    assert training.probe is not None
    extractor = make_extractor(training)
    paths = training.probe.train.paths
    views = [view[:] for view in extractor.extract(paths, ViewSpec(flipped=True, num_crops=5))[0]]
    corners = [((0.5, 0.5), False), ((0.0, 0.0), True), ((1.0, 1.0), False), ((1.0, 0.0), True)]
    for index, (anchor, flipped) in enumerate([*corners, ((0.0, 1.0), False)]):
        with torch.inference_mode():
            rows = [compute_crop(training, path, anchor, flipped=flipped) for path in paths]
        expected = torch.cat(rows).numpy()
        np.testing.assert_allclose(views[2 + index], expected, rtol=1e-4, atol=1e-5)
    num_computed = extractor.num_computed
    extractor.extract(paths, ViewSpec(flipped=True))
    extractor.extract(paths, ViewSpec(flipped=True, num_crops=1))
    assert extractor.num_computed == num_computed
    extractor.extract(paths, ViewSpec(num_crops=2))
    assert extractor.num_computed == num_computed + len(paths)


def compute_crop(
    training: Training, path: Path, anchor: tuple[float, float], *, flipped: bool
) -> Tensor:
    """Return the features (1, D) of a crop of 0.8 of the width and height, cropped by hand."""
    spec = training.network.spec
    with Image.open(path) as image:
        full = image.convert("RGB")
    width, height = round(0.8 * full.width), round(0.8 * full.height)
    left = round(anchor[0] * (full.width - width))
    top = round(anchor[1] * (full.height - height))
    crop = full.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(EvalTransform(spec).to_pixels(crop))[None]
    network = training.module.classifier.network
    images = normalise(pixels.flip(2) if flipped else pixels, mean=spec.mean, std=spec.std)
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return features
