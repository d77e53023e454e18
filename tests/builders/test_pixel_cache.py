"""Whether pixels are kept is decided once, for a reason; what is kept is what the files show."""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.builders import Training, build_training, enable_cache
from finetune.config.load import build_config, dump_config, read_config_file, replace_values
from finetune.data.cache.eviction import evict_to_fit, get_default_cache_root, measure_store_bytes
from finetune.data.cache.pixel_store import PixelStore
from finetune.data.images.lazy_image import open_image
from finetune.data.manifest import Manifest
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import ConfigError, DataError, StorageError
from finetune.types import Draw, Reporter, Sample, Split
from tests.support.helpers import Recorder, smooth, tiny_disk
from tests.support.networks import one_thread
from tests.support.pictures import psnr, write_jpeg
from tests.support.runs import CLASSES, manifest_of, small_config, small_training, write_photos


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 24 training and 15 validation images of 32 x 32 pixels; never change them."""
    return write_photos(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture
def photos(tmp_path: Path) -> Manifest:
    """Return 12 JPEGs to train on and 6 to validate with, larger than is needed, some turned."""
    samples = []
    for number in range(18):
        split = Split.TRAIN if number < 12 else Split.VAL
        label = CLASSES[number % 3]
        file = tmp_path / "photos" / f"{number:02}.jpg"
        file.parent.mkdir(exist_ok=True)
        image = smooth(width=150 + 5 * number, height=120 - number)
        write_jpeg(file, image, orientation=1 + number % 8)
        samples.append(Sample(file.name, label, split))
    return Manifest(tmp_path / "photos", CLASSES, tuple(samples))


class Heard(Reporter):
    """Remembers how many images were to be decoded each time."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def start(self, task: str, total: int) -> None:
        self.decoded.append(total)


def kept(training: Training, reporter: Reporter | None = None) -> Training:
    return enable_cache(training, reporter=reporter or Reporter())


def saved(pipeline: A.Compose, folder: Path) -> str:
    A.save(pipeline, folder / "mine.json", data_format="json")
    return str(folder / "mine.json")


def from_the_middle(folder: Path) -> str:
    """Save a pipeline that does not say how much of an image it needs."""
    return saved(A.Compose([A.SmallestMaxSize(32), A.CenterCrop(32, 32)]), folder)


def test_images_of_more_than_one_epoch_are_kept(animals: Path, tmp_path: Path) -> None:
    training = small_training(animals)
    assert training.config.data.cache == "on"
    assert training.no_cache_reason == ""
    assert training.cache is not None
    assert training.cache.root == tmp_path / "cache" / "pixels"
    assert training.cache.owner == str(animals)
    assert not (tmp_path / "cache").exists(), "a plan writes nothing"


def test_images_of_one_epoch_are_not_kept_unless_asked(animals: Path) -> None:
    auto = small_training(animals, trainer__epochs=1)
    assert (auto.config.data.cache, auto.cache, auto.no_cache_reason) == (
        "off",
        None,
        "one epoch only",
    )
    assert kept(auto) is auto
    asked = small_training(animals, trainer__epochs=1, data__cache="on")
    assert asked.config.data.cache == "on"
    assert asked.cache is not None


def test_who_wants_none_gets_none(animals: Path) -> None:
    training = small_training(animals, data__cache="off")
    assert (training.config.data.cache, training.cache) == ("off", None)
    assert kept(training) is training


HINDRANCES = {
    "cache.max_gb=1e-05": r"0\.0 GB of pixels are more than cache\.max_gb=1e-05 allows",
    "pipeline": r"the pipeline .*mine\.json does not begin with RandomResizedCrop or Resize.*"
    r"data\.cache_shorter_side=PIXELS",
    "disk": r"0\.0 GB of pixels do not fit into the 1\.9 GB free at .*cache",
}


def hindered(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return settings with which no pixels can be kept."""
    if what == "pipeline":
        return {"augment__name": from_the_middle(folder)}
    if what == "disk":
        free = SimpleNamespace(total=10**12, used=0, free=1_900_000_000)
        monkeypatch.setattr("finetune.builders.pixel_cache.shutil.disk_usage", lambda _: free)
        return {}
    return {"cache__max_gb": 1e-5}


@pytest.mark.parametrize("what", HINDRANCES)
def test_where_nothing_can_be_kept_auto_says_why_and_a_wish_is_refused(
    what: str, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = hindered(what, tmp_path, monkeypatch)
    training = small_training(animals, **settings)
    assert (training.config.data.cache, training.cache) == ("off", None)
    with pytest.raises(ConfigError, match=HINDRANCES[what]):
        raise ConfigError(training.no_cache_reason)
    for asked in ("on", str(tmp_path / "cache" / "mine")):
        message = rf"data\.cache={asked}: {HINDRANCES[what]}.*Or set data\.cache=off"
        with pytest.raises(ConfigError, match=message):
            small_training(animals, data__cache=asked, **settings)


def test_a_pipeline_of_any_kind_is_kept_at_a_given_size(photos: Manifest, tmp_path: Path) -> None:
    name = from_the_middle(tmp_path)
    config = small_config(augment__name=name, data__cache_shorter_side=64, data__cache="on")
    training = kept(build_training(config, photos))
    shapes = [stored_shape(training, row) for row in range(12)]
    assert {min(shape[:2]) for shape in shapes} == {64}


def stored_shape(training: Training, row: int) -> tuple[int, ...]:
    return np.asarray(training.datamodule.train_dataset.source.open(row).to_pil()).shape


@pytest.mark.parametrize(("name", "share"), [("light", 0.5), ("medium", 0.35), ("strong", 0.2)])
def test_images_are_kept_as_large_as_the_smallest_crop_needs(
    name: str, share: float, photos: Manifest
) -> None:
    training = kept(build_training(small_config(augment__name=name), photos))
    side = math.ceil(32 / share**0.5)
    assert training.config.data.cache_shorter_side == side
    assert training.cache is not None
    assert training.cache.shorter_side == side
    assert {min(stored_shape(training, row)[:2]) for row in range(12)} == {side}


def test_a_pipeline_of_the_users_own_is_kept_as_large_as_it_needs(
    photos: Manifest, tmp_path: Path
) -> None:
    crop = A.RandomResizedCrop((32, 32), scale=(0.25, 0.5))
    name = saved(A.Compose([crop, A.VerticalFlip()]), tmp_path)
    training = build_training(small_config(augment__name=name), photos)
    assert training.config.data.cache_shorter_side == 64
    # a crop of next to nothing needs all that there is
    name = saved(A.Compose([A.RandomResizedCrop((32, 32), scale=(0.0, 1.0))]), tmp_path)
    training = kept(build_training(small_config(augment__name=name), photos))
    with Image.open(photos.root / "00.jpg") as image:
        assert stored_shape(training, 0) == (image.height, image.width, 3)


def test_without_augmentation_images_are_kept_ready(photos: Manifest) -> None:
    training = build_training(small_config(), photos)
    assert training.config.data.cache_shorter_side == "auto"
    assert training.cache is not None
    assert training.cache.shorter_side is None
    assert training.cache.num_bytes == 18 * 32 * 32 * 3
    kept_data, files = kept(training).datamodule, training.datamodule
    for row in range(12):
        found, expected = (data.train_dataset[Draw(row, 1, 0)] for data in (kept_data, files))
        assert torch.equal(found["image"], expected["image"])


@pytest.mark.parametrize("name", ["none", "light", "strong"])
def test_validation_sees_the_bits_that_evaluation_sees(name: str, photos: Manifest) -> None:
    training = kept(build_training(small_config(augment__name=name), photos))
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


def training_views(training: Training, epochs: Sequence[int] = (0, 1)) -> list[Tensor]:
    data = training.datamodule.train_dataset
    return [data[Draw(row, epoch, 0)]["image"] for epoch in epochs for row in range(len(data))]


def test_training_sees_the_crops_that_it_would_cut_from_the_files(photos: Manifest) -> None:
    training = build_training(small_config(augment__name="light"), photos)
    after = kept(training)
    for found, expected in zip(training_views(after), training_views(training), strict=True):
        assert psnr(found.numpy(), expected.numpy()) > 30
    assert after.datamodule.loader_options == training.datamodule.loader_options
    assert torch.equal(
        after.datamodule.train_dataset.labels, training.datamodule.train_dataset.labels
    )
    assert torch.equal(after.datamodule.val_dataset.labels, training.datamodule.val_dataset.labels)


def test_images_that_are_small_already_are_not_changed_at_all(animals: Path) -> None:
    training = small_training(animals, augment__name="medium")
    for found, expected in zip(
        training_views(kept(training)), training_views(training), strict=True
    ):
        assert torch.equal(found, expected)


def test_what_the_sampler_says_is_passed_on(animals: Path) -> None:
    training = small_training(animals, imbalance__strategy="weighted")
    sampling = kept(training).datamodule.sampling_schedule
    assert sampling(0) is not None
    assert sampling is training.datamodule.sampling_schedule


def never(*_: object, **__: object) -> None:
    raise AssertionError("an image was decoded again")


def test_a_second_run_decodes_nothing(photos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(augment__name="medium")
    first = build_training(config, photos)
    assert first.cache is not None
    assert first.cache.new_bytes == first.cache.num_bytes > 0
    heard = Heard()
    views = training_views(kept(first, heard))
    assert heard.decoded == [12, 6]
    for name in ("shrunk", "ready"):
        monkeypatch.setattr(f"finetune.builders.pixel_cache.{name}", never)
    again = build_training(first.config, photos)
    assert again.config == first.config
    assert again.cache is not None
    assert again.cache.new_bytes == 0
    second = kept(again, heard)
    assert heard.decoded == [12, 6]
    for found, expected in zip(training_views(second), views, strict=True):
        assert torch.equal(found, expected)
    other_seed = kept(build_training(small_config(augment__name="medium", seed=5), photos), heard)
    assert heard.decoded == [12, 6]
    assert not torch.equal(training_views(other_seed)[0], views[0])


def test_another_split_of_the_same_images_decodes_only_what_changed_sides(
    photos: Manifest,
) -> None:
    heard = Heard()
    kept(build_training(small_config(augment__name="light"), photos), heard)
    sides = [Split.VAL if number in (0, 1, 2) else Split.TRAIN for number in range(18)]
    samples = tuple(
        Sample(sample.path, sample.label, side)
        for sample, side in zip(photos.samples, sides, strict=True)
    )
    other = Manifest(photos.root, photos.classes, samples)
    kept(build_training(small_config(augment__name="light"), other), heard)
    assert heard.decoded == [12, 6, 6, 3]


def test_another_size_or_preprocessing_is_kept_apart(photos: Manifest) -> None:
    heard = Heard()
    kept(build_training(small_config(augment__name="light"), photos), heard)
    for more in (
        {"data__image_size": 48},
        {"model__pretrained_cfg": {"crop_pct": 0.5}},
        {"model__pretrained_cfg": {"interpolation": "lanczos"}},
        {"model__pretrained_cfg": {"crop_mode": "squash"}},
    ):
        heard.decoded.clear()
        training = build_training(small_config(augment__name="light", **more), photos)
        after = kept(training, heard)
        assert heard.decoded == ([12, 6] if "data__image_size" in more else [6]), more
        for row in range(6):
            found, expected = (
                data.val_dataset[row]["image"] for data in (after.datamodule, training.datamodule)
            )
            assert torch.equal(found, expected)


def test_the_size_is_estimated_before(photos: Manifest) -> None:
    training = build_training(small_config(augment__name="light"), photos)
    after = kept(training)
    assert training.cache is not None
    exact = sum(math.prod(stored_shape(after, row)) for row in range(12)) + 6 * 32 * 32 * 3
    assert training.cache.num_bytes == pytest.approx(exact, rel=0.05)


def test_another_place_is_used_and_remembered_in_full(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    training = kept(small_training(animals, data__cache="here/pixels"))
    assert training.config.data.cache == str(tmp_path / "here" / "pixels")
    assert len(list((tmp_path / "here" / "pixels").glob("*/arrays.bin"))) == 1
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    training = small_training(animals, data__cache="~/pixels")
    assert training.config.data.cache == str(tmp_path / "home" / "pixels")


def test_the_users_cache_folder_is_the_place_where_none_is_named(
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


@pytest.mark.parametrize(("written", "word"), [("off", "off"), ("on", "on"), ("no", "off")])
def test_the_words_of_yaml_are_words(tmp_path: Path, written: str, word: str) -> None:
    (tmp_path / "config.yaml").write_text(f"data: {{cache: {written}}}\n")
    config = build_config(read_config_file(tmp_path / "config.yaml"))
    assert config.data.cache == word
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert build_config(read_config_file(tmp_path / "again.yaml")) == config


def test_a_file_that_is_no_image_any_more_is_named(photos: Manifest) -> None:
    training = build_training(small_config(), photos)
    (photos.root / "03.jpg").write_bytes(b"Dear diary")
    with pytest.raises(DataError, match=r"03\.jpg: not an image.*It read well before"):
        kept(training)


def test_a_full_disk_is_named_with_the_way_out(animals: Path, tmp_path: Path) -> None:
    training = small_training(animals)
    assert training.cache is not None
    with tiny_disk(tmp_path / "disk", size="64k") as disk:
        assert training.cache.num_bytes > 64 * 1024
        asked: Any = small_config(data__cache=str(disk / "pixels"))
        # the disk fills up between the plan and the run
        plan = build_plan_on(disk, animals, asked)
        with pytest.raises(StorageError, match=r"data\.cache=PATH .*data\.cache=off"):
            kept(plan)


def build_plan_on(disk: Path, animals: Path, config: Any) -> Training:
    with pytest.MonkeyPatch.context() as patch:
        free = SimpleNamespace(total=10**12, used=0, free=10**12)
        patch.setattr("finetune.builders.pixel_cache.shutil.disk_usage", lambda _: free)
        return build_training(config, manifest_of(animals))


def old_store(root: Path, owner: str, *, num_bytes: int) -> Path:
    """Make a store that nobody uses, and return its folder."""
    folder = PixelStore(root, tag="short-9", owner=owner).folder
    (folder / "arrays.bin").write_bytes(bytes(num_bytes))
    os.utime(folder / "arrays.bin", (10**9, 10**9))
    return folder


def test_room_is_made_for_a_run_at_the_cost_of_the_oldest_stores(
    animals: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cache" / "pixels"
    old, large = (old_store(root, name, num_bytes=400_000) for name in ("old", "large"))
    os.utime(large / "arrays.bin", (2 * 10**9, 2 * 10**9))
    # 119,808 bytes of pixels
    kept(small_training(animals, cache__max_gb=0.0007))
    assert not old.exists()
    assert large.exists()


def test_the_stores_of_a_run_are_not_removed_for_its_own_sake(
    animals: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cache" / "pixels"
    heard = Heard()
    training = kept(small_training(animals), heard)
    assert training.cache is not None
    (mine,) = [folder for folder in root.iterdir() if folder.is_dir()]
    training = small_training(animals, cache__max_gb=0.0007)
    os.utime(mine / "arrays.bin", (1, 1))
    other = old_store(root, "other", num_bytes=600_000)
    kept(training, heard)
    assert heard.decoded == [24, 15], "the run's own store was the oldest, but it is still there"
    assert not other.exists()
    assert measure_store_bytes(mine) > 100_000
    assert evict_to_fit(root, needed_bytes=0, limit_bytes=700_000)


def test_a_run_that_has_begun_goes_on_without_room_on_the_same_pixels(
    photos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(augment__name="medium")
    begun = build_training(config, photos)
    stored = kept(begun)
    views = [*training_views(stored), *validation_views(stored)]
    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr("finetune.builders.pixel_cache.shutil.disk_usage", lambda _: full)
    assert build_training(begun.config, photos).cache is not None  # all of it is there already
    other = replace_values(begun.config, {"data.cache": str(photos.root / "other")})
    with pytest.raises(ConfigError, match="do not fit"):
        build_training(other, photos)
    recorder = Recorder()
    going_on = kept(build_training(other, photos, is_resumed=True), recorder)
    assert len(recorder.warnings) == 1
    assert "no room" in recorder.warnings[0]
    again = [*training_views(going_on), *validation_views(going_on)]
    assert all(torch.equal(a, b) for a, b in zip(again, views, strict=True))
    assert not (photos.root / "other").exists()


def validation_views(training: Training) -> list[Tensor]:
    data = training.datamodule.val_dataset
    return [data[row]["image"] for row in range(len(data))]
