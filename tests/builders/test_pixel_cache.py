"""Tests of the pixel cache: when it is used, its sizes, and that it changes no image."""

import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import albumentations as A  # noqa: N812
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.builders import Training, build_training, enable_cache
from finetune.config.load import build_config, dump_config, read_config_file, replace_values
from finetune.config.schema import Config
from finetune.data.cache.eviction import evict_to_fit, get_default_cache_root, measure_store_bytes
from finetune.data.cache.pixel_store import PixelStore
from finetune.data.images.decode import open_image
from finetune.data.manifest import Manifest
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import ConfigError, DataError
from finetune.types import Draw, Reporter, Sample, Split
from tests.support import runs
from tests.support.helpers import RecordingReporter, create_smooth_image, mount_tiny_disk
from tests.support.pictures import compute_psnr, write_jpeg
from tests.support.runs import CLASSES

# but for the tests of these images, which are in the store of the validation images
NO_SAMPLE = {"trainer__train_eval": "off"}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def create_small_config(**assignments: object) -> Config:
    return runs.create_small_config(**{**NO_SAMPLE, **assignments})


def create_small_training(data: Path, **assignments: object) -> Training:
    return runs.create_small_training(data, **{**NO_SAMPLE, **assignments})


@pytest.fixture
def photos(tmp_path: Path) -> Manifest:
    """Return 12 training and 6 validation JPEGs, larger than needed, some with EXIF rotation."""
    samples = []
    for number in range(18):
        split = Split.TRAIN if number < 12 else Split.VAL
        label = CLASSES[number % 3]
        file = tmp_path / "photos" / f"{number:02}.jpg"
        file.parent.mkdir(exist_ok=True)
        image = create_smooth_image(width=150 + 5 * number, height=120 - number)
        write_jpeg(file, image, orientation=1 + number % 8)
        samples.append(Sample(file.name, label, split))
    return Manifest(tmp_path / "photos", CLASSES, tuple(samples))


class DecodeRecorder(Reporter):
    """Records the number of images of each decoding task."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def start(self, task: str, total: int) -> None:
        self.decoded.append(total)


def fill(training: Training, reporter: Reporter | None = None) -> Training:
    return enable_cache(training, reporter=reporter or Reporter())


def save(pipeline: A.Compose, folder: Path) -> str:
    A.save(pipeline, folder / "mine.json", data_format="json")
    return str(folder / "mine.json")


def save_center_crop(folder: Path) -> str:
    """Save a pipeline from which the required image size cannot be derived."""
    return save(A.Compose([A.SmallestMaxSize(32), A.CenterCrop(32, 32)]), folder)


def test_cache_auto_with_several_epochs_is_on(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(animals)
    assert training.config.data.cache == "on"
    assert training.no_cache_reason == ""
    assert training.cache is not None
    assert training.cache.root == tmp_path / "cache" / "pixels"
    assert training.cache.owner == str(animals)
    assert not (tmp_path / "cache").exists(), "planning writes nothing"


def test_cache_auto_with_one_epoch_is_off_and_on_is_kept(animals: Path) -> None:
    auto = create_small_training(animals, trainer__epochs=1)
    assert (auto.config.data.cache, auto.cache, auto.no_cache_reason) == (
        "off",
        None,
        "only one epoch",
    )
    assert fill(auto) is auto
    requested = create_small_training(animals, trainer__epochs=1, data__cache="on")
    assert requested.config.data.cache == "on"
    assert requested.cache is not None


def test_cache_off_has_no_plan(animals: Path) -> None:
    training = create_small_training(animals, data__cache="off")
    assert (training.config.data.cache, training.cache) == ("off", None)
    assert fill(training) is training


OBSTACLES = {
    "cache.max_gb=1e-05": r"(kB|MB).*cache\.max_gb=1e-05",
    "pipeline": r"mine\.json .*data\.cache_shorter_side=PIXELS",
    "disk": r"kB .*1\.9 GB .*cache",
}


def build_obstacle(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return settings with which there can be no cache."""
    if name == "pipeline":
        return {"augment__name": save_center_crop(folder)}
    if name == "disk":
        free = SimpleNamespace(total=10**12, used=0, free=1_900_000_000)
        monkeypatch.setattr("finetune.builders.pixel_cache.shutil.disk_usage", lambda _: free)
        return {}
    return {"cache__max_gb": 1e-5}


@pytest.mark.parametrize("name", OBSTACLES)
def test_cache_obstacle_disables_auto_and_rejects_on(
    name: str, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = build_obstacle(name, tmp_path, monkeypatch)
    training = create_small_training(animals, **settings)
    assert (training.config.data.cache, training.cache) == ("off", None)
    assert re.search(OBSTACLES[name], training.no_cache_reason)
    for location in ("on", str(tmp_path / "cache" / "mine")):
        message = rf"data\.cache={location}: .*{OBSTACLES[name]}.*data\.cache=off"
        with pytest.raises(ConfigError, match=message):
            create_small_training(animals, data__cache=location, **settings)


def test_cache_shorter_side_given_works_with_any_pipeline(photos: Manifest, tmp_path: Path) -> None:
    name = save_center_crop(tmp_path)
    config = create_small_config(augment__name=name, data__cache_shorter_side=64, data__cache="on")
    training = fill(build_training(config, photos))
    shapes = [stored_shape(training, row) for row in range(12)]
    assert {min(shape[:2]) for shape in shapes} == {64}


def stored_shape(training: Training, row: int) -> tuple[int, ...]:
    return np.asarray(training.datamodule.train_dataset.source.open(row).to_pil()).shape


@pytest.mark.parametrize(("name", "scale"), [("light", 0.5), ("medium", 0.35), ("strong", 0.2)])
def test_cache_shorter_side_follows_the_smallest_crop(
    name: str, scale: float, photos: Manifest
) -> None:
    training = fill(build_training(create_small_config(augment__name=name), photos))
    side = math.ceil(32 / scale**0.5)
    assert training.config.data.cache_shorter_side == side
    assert training.cache is not None
    assert training.cache.shorter_side == side
    assert {min(stored_shape(training, row)[:2]) for row in range(12)} == {side}


def test_cache_shorter_side_follows_custom_pipeline(photos: Manifest, tmp_path: Path) -> None:
    crop = A.RandomResizedCrop((32, 32), scale=(0.25, 0.5))
    name = save(A.Compose([crop, A.VerticalFlip()]), tmp_path)
    training = build_training(create_small_config(augment__name=name), photos)
    assert training.config.data.cache_shorter_side == 64
    # an arbitrarily small crop needs the full resolution
    name = save(A.Compose([A.RandomResizedCrop((32, 32), scale=(0.0, 1.0))]), tmp_path)
    training = fill(build_training(create_small_config(augment__name=name), photos))
    with Image.open(photos.root / "00.jpg") as image:
        assert stored_shape(training, 0) == (image.height, image.width, 3)


def test_cache_without_augmentation_stores_outputs_of_eval_transform(photos: Manifest) -> None:
    training = build_training(create_small_config(), photos)
    assert training.config.data.cache_shorter_side == "auto"
    assert training.cache is not None
    assert training.cache.shorter_side is None
    assert training.cache.num_bytes == 18 * 32 * 32 * 3
    cached_data, files = fill(training).datamodule, training.datamodule
    for row in range(12):
        found, expected = (data.train_dataset[Draw(row, 1, 0)] for data in (cached_data, files))
        assert torch.equal(found["image"], expected["image"])


@pytest.mark.parametrize("name", ["none", "light", "strong"])
def test_cached_validation_images_equal_eval_transform(name: str, photos: Manifest) -> None:
    training = fill(build_training(create_small_config(augment__name=name), photos))
    transform = EvalTransform(training.network.spec)
    paths = photos.resolve_paths(photos.get_samples(Split.VAL))
    assert len(training.datamodule.val_dataset) == 6
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            upright = open_image(path).to_pil()
            assert sorted(upright.size) == sorted(image.size)
        item = training.datamodule.val_dataset[row]
        expected = transform(open_image(path)).pixels
        np.testing.assert_array_equal(item["image"].numpy(), expected)
        assert int(item["label"]) == photos.encode_labels(photos.get_samples(Split.VAL))[row]


def load_train_images(training: Training, epochs: Sequence[int] = (0, 1)) -> list[Tensor]:
    data = training.datamodule.train_dataset
    return [data[Draw(row, epoch, 0)]["image"] for epoch in epochs for row in range(len(data))]


def test_cached_train_crops_are_close_to_those_from_files(photos: Manifest) -> None:
    training = build_training(create_small_config(augment__name="light"), photos)
    after = fill(training)
    for found, expected in zip(load_train_images(after), load_train_images(training), strict=True):
        assert compute_psnr(found.numpy(), expected.numpy()) > 30
    assert after.datamodule.loader_options == training.datamodule.loader_options
    assert torch.equal(
        after.datamodule.train_dataset.labels, training.datamodule.train_dataset.labels
    )
    assert torch.equal(after.datamodule.val_dataset.labels, training.datamodule.val_dataset.labels)


def test_cached_small_images_are_unchanged(animals: Path) -> None:
    training = create_small_training(animals, augment__name="medium")
    for found, expected in zip(
        load_train_images(fill(training)), load_train_images(training), strict=True
    ):
        assert torch.equal(found, expected)


def test_cached_datamodule_keeps_sampling_schedule(animals: Path) -> None:
    training = create_small_training(animals, imbalance__strategy="weighted")
    sampling = fill(training).datamodule.sampling_schedule
    assert sampling(0) is not None
    assert sampling is training.datamodule.sampling_schedule


def fail_decode(*_: object, **__: object) -> None:
    raise AssertionError("an image was decoded again")


def test_second_run_decodes_nothing(photos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    config = create_small_config(augment__name="medium")
    first = build_training(config, photos)
    assert first.cache is not None
    assert first.cache.new_bytes == first.cache.num_bytes > 0
    recorder = DecodeRecorder()
    views = load_train_images(fill(first, recorder))
    assert recorder.decoded == [12, 6]
    for name in ("decode_resized", "decode_transformed"):
        monkeypatch.setattr(f"finetune.builders.datamodules.cached_datamodule.{name}", fail_decode)
    again = build_training(first.config, photos)
    assert again.config == first.config
    assert again.cache is not None
    assert again.cache.new_bytes == 0
    second = fill(again, recorder)
    assert recorder.decoded == [12, 6]
    for found, expected in zip(load_train_images(second), views, strict=True):
        assert torch.equal(found, expected)
    other_seed = fill(
        build_training(create_small_config(augment__name="medium", seed=5), photos), recorder
    )
    assert recorder.decoded == [12, 6]
    assert not torch.equal(load_train_images(other_seed)[0], views[0])


def test_other_split_decodes_only_moved_images(
    photos: Manifest,
) -> None:
    recorder = DecodeRecorder()
    fill(build_training(create_small_config(augment__name="light"), photos), recorder)
    splits = [Split.VAL if number in (0, 1, 2) else Split.TRAIN for number in range(18)]
    samples = tuple(
        Sample(sample.path, sample.label, split)
        for sample, split in zip(photos.samples, splits, strict=True)
    )
    other = Manifest(photos.root, photos.classes, samples)
    fill(build_training(create_small_config(augment__name="light"), other), recorder)
    assert recorder.decoded == [12, 6, 6, 3]


def test_other_image_size_or_preprocessing_uses_another_store(photos: Manifest) -> None:
    recorder = DecodeRecorder()
    fill(build_training(create_small_config(augment__name="light"), photos), recorder)
    for more in (
        {"data__image_size": 48},
        {"model__pretrained_cfg": {"crop_pct": 0.5}},
        {"model__pretrained_cfg": {"interpolation": "lanczos"}},
        {"model__pretrained_cfg": {"crop_mode": "squash"}},
    ):
        recorder.decoded.clear()
        training = build_training(create_small_config(augment__name="light", **more), photos)
        after = fill(training, recorder)
        assert recorder.decoded == ([12, 6] if "data__image_size" in more else [6]), more
        for row in range(6):
            found, expected = (
                data.val_dataset[row]["image"] for data in (after.datamodule, training.datamodule)
            )
            assert torch.equal(found, expected)


def test_other_pixel_range_uses_other_stores(photos: Manifest) -> None:
    recorder = DecodeRecorder()
    for pixel_range, decoded in (
        ("full", [12, 6]),
        ("0:4095", [12, 6]),
        ("0:1023", [12, 6]),
        ("0:4095", []),
    ):
        recorder.decoded.clear()
        config = create_small_config(augment__name="light", data__pixel_range=pixel_range)
        fill(build_training(config, photos), recorder)
        assert recorder.decoded == decoded, pixel_range


def test_cache_plan_estimates_its_size(photos: Manifest) -> None:
    training = build_training(create_small_config(augment__name="light"), photos)
    after = fill(training)
    assert training.cache is not None
    exact = sum(math.prod(stored_shape(after, row)) for row in range(12)) + 6 * 32 * 32 * 3
    assert training.cache.num_bytes == pytest.approx(exact, rel=0.05)


def test_cache_folder_is_used_and_resolved_to_an_absolute_path(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    training = fill(create_small_training(animals, data__cache="here/pixels"))
    assert training.config.data.cache == str(tmp_path / "here" / "pixels")
    assert len(list((tmp_path / "here" / "pixels").glob("*/arrays.bin"))) == 1
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    training = create_small_training(animals, data__cache="~/pixels")
    assert training.config.data.cache == str(tmp_path / "home" / "pixels")


def test_default_cache_root_follows_environment_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tmp_path in get_default_cache_root().parents
    assert get_default_cache_root().parts[-2:] == ("finetune", "pixels")
    monkeypatch.setenv("FINETUNE_CACHE", "~/mine")
    assert get_default_cache_root() == tmp_path / "mine" / "pixels"
    monkeypatch.setenv("FINETUNE_CACHE", "")
    assert get_default_cache_root().parts[-2:] == ("finetune", "pixels")


@pytest.mark.parametrize(("text", "expected"), [("off", "off"), ("on", "on"), ("no", "off")])
def test_cache_yaml_booleans_are_read_as_on_and_off(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"data: {{cache: {text}}}\n")
    config = build_config(read_config_file(tmp_path / "config.yaml"))
    assert config.data.cache == expected
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert build_config(read_config_file(tmp_path / "again.yaml")) == config


def test_fill_cache_damaged_file_raises_data_error(photos: Manifest) -> None:
    training = build_training(create_small_config(), photos)
    (photos.root / "03.jpg").write_bytes(b"Dear diary")
    with pytest.raises(DataError, match=r"03\.jpg"):
        fill(training)


def test_fill_cache_full_disk_warns_once_and_decodes_to_the_same_pixels(
    photos: Manifest, tmp_path: Path
) -> None:
    config: Any = create_small_config(augment__name="medium")
    stored = fill(build_training(config, photos))
    expected = [*load_train_images(stored), *load_val_images(stored)]
    with mount_tiny_disk(tmp_path / "disk", size="64k") as disk:
        config = create_small_config(augment__name="medium", data__cache=str(disk / "pixels"))
        # the disk fills up between the plan and the run
        plan = build_with_free_disk(photos, config)
        assert plan.cache is not None
        assert plan.cache.num_bytes > 64 * 1024
        recorder = RecordingReporter()
        filled = fill(plan, recorder)
        (warning,) = recorder.warnings
        assert f"{disk / 'pixels'} cannot be used: " in warning
        assert "no space is left" in warning or "the disk is full" in warning
        assert "data.cache=PATH or FINETUNE_CACHE" in warning
        images = [*load_train_images(filled), *load_val_images(filled)]
        assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))
        (tmp_path / "disk" / "checkpoint").write_bytes(bytes(20_000))  # the space is free again


def test_unusable_cache_folder_decodes_to_the_same_pixels(
    photos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = create_small_config(augment__name="medium")
    stored = fill(build_training(config, photos))
    expected = [*load_train_images(stored), *load_val_images(stored)]
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file"))
    training = build_training(config, photos)
    reason = f"the cache in {tmp_path}/file/pixels cannot be used: {tmp_path}/file is a file"
    assert training.no_cache_reason == reason
    recorder = RecordingReporter()
    filled = fill(training, recorder)
    assert len(recorder.warnings) == 1
    assert reason[1:] in recorder.warnings[0]
    images = [*load_train_images(filled), *load_val_images(filled)]
    assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))


def build_with_free_disk(photos: Manifest, config: Any) -> Training:
    """Return the training as built while the disk has enough space."""
    with pytest.MonkeyPatch.context() as patch:
        free = SimpleNamespace(total=10**12, used=0, free=10**12)
        patch.setattr("finetune.builders.pixel_cache.shutil.disk_usage", lambda _: free)
        return build_training(config, photos)


def create_old_store(root: Path, owner: str, *, num_bytes: int) -> Path:
    """Create a store that no run uses, and return its folder."""
    folder = PixelStore(root, tag="short-9", owner=owner).folder
    (folder / "arrays.bin").write_bytes(bytes(num_bytes))
    os.utime(folder / "arrays.bin", (10**9, 10**9))
    return folder


def test_fill_cache_evicts_the_oldest_stores(animals: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "pixels"
    old, large = (create_old_store(root, name, num_bytes=400_000) for name in ("old", "large"))
    os.utime(large / "arrays.bin", (2 * 10**9, 2 * 10**9))
    # 119,808 bytes of pixels
    fill(create_small_training(animals, cache__max_gb=0.0007))
    assert not old.exists()
    assert large.exists()


def test_fill_cache_does_not_evict_the_stores_of_the_run(animals: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "pixels"
    recorder = DecodeRecorder()
    training = fill(create_small_training(animals), recorder)
    assert training.cache is not None
    (own_store,) = [folder for folder in root.iterdir() if folder.is_dir()]
    training = create_small_training(animals, cache__max_gb=0.0007)
    os.utime(own_store / "arrays.bin", (1, 1))
    other = create_old_store(root, "other", num_bytes=600_000)
    fill(training, recorder)
    assert recorder.decoded == [24, 15], "the run's own store is kept, although it is the oldest"
    assert not other.exists()
    assert measure_store_bytes(own_store) > 100_000
    assert evict_to_fit(root, needed_bytes=0, limit_bytes=700_000)


def test_resumed_run_without_space_decodes_to_the_same_pixels(
    photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = create_small_config(augment__name="medium")
    first = build_training(config, photos)
    stored = fill(first)
    images = [*load_train_images(stored), *load_val_images(stored)]
    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr("finetune.builders.pixel_cache.shutil.disk_usage", lambda _: full)
    assert build_training(first.config, photos).cache is not None  # everything is stored already
    other = replace_values(first.config, {"data.cache": str(photos.root / "other")})
    with pytest.raises(ConfigError, match=r"data\.cache=.*kB"):
        build_training(other, photos)
    recorder = RecordingReporter()
    resumed = fill(build_training(other, photos, is_resumed=True), recorder)
    assert len(recorder.warnings) == 1
    assert "data.cache=PATH" in recorder.warnings[0]
    again = [*load_train_images(resumed), *load_val_images(resumed)]
    assert all(torch.equal(a, b) for a, b in zip(again, images, strict=True))
    assert not (photos.root / "other").exists()


def load_val_images(training: Training) -> list[Tensor]:
    data = training.datamodule.val_dataset
    return [data[row]["image"] for row in range(len(data))]


def test_measured_training_images_are_stored_as_validation_images_are(
    photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = create_small_config(augment__name="medium", trainer__train_eval="on")
    training = build_training(config, photos)
    assert training.cache is not None
    assert training.cache.sample_bytes == 6 * 32 * 32 * 3
    plain = training.datamodule.train_eval_dataset
    assert plain is not None
    recorder = DecodeRecorder()
    stored = fill(training, recorder).datamodule.train_eval_dataset
    assert recorder.decoded == [12, 6, 6]
    assert stored is not None
    assert all(torch.equal(plain[row]["image"], stored[row]["image"]) for row in range(6))
    monkeypatch.setattr(
        "finetune.builders.datamodules.cached_datamodule.decode_transformed", fail_decode
    )
    again = build_training(training.config, photos)
    assert again.cache is not None
    assert again.cache.sample_bytes == 0
    assert fill(again).datamodule.train_eval_dataset is not None


def test_measured_training_images_never_turn_the_cache_off(photos: Manifest) -> None:
    """Without a cache, training would read other pixels."""
    config = create_small_config(augment__name="medium", trainer__train_eval="on")
    plan = build_training(config, photos).cache
    assert plan is not None
    limit_gb = (plan.num_bytes + 100) / 1e9  # not one image more
    settings = {"augment__name": "medium", "cache__max_gb": limit_gb}
    training = build_training(create_small_config(**settings, trainer__train_eval="on"), photos)
    assert training.cache is not None
    assert not training.cache.fits_sample
    recorder = DecodeRecorder()
    sample = fill(training, recorder).datamodule.train_eval_dataset
    assert recorder.decoded == [12, 6]
    original = training.datamodule.train_eval_dataset
    assert sample is not None
    assert original is not None
    assert all(torch.equal(original[row]["image"], sample[row]["image"]) for row in range(6))
