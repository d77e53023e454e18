"""Batches hold the right pixels, labels and rows, however many processes read them."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data import dataset as dataset_module
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.data.cache.pixel_writer import decode_resized, fill_store
from finetune.data.dataset import Batch, ImageDataset, create_loader, translate_worker_errors
from finetune.data.images.lazy_image import open_image
from finetune.data.images.source import FileSource, ImageSource
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.data.samplers.sampling_weights import weighted
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.data.transforms.presets import create_train_transform
from finetune.errors import DataError, TrainingError
from finetune.types import Draw, PreprocessSpec, Reporter
from tests.support.helpers import noise, smooth
from tests.support.pictures import Watched, write_jpeg

SPEC = PreprocessSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
LABELS = [0] * 6 + [1] * 4


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


@pytest.fixture
def jpegs(tmp_path: Path) -> list[Path]:
    """Return ten JPEGs of several sizes and orientations."""
    return [
        write_jpeg(
            tmp_path / f"{number}.jpg",
            smooth(width=60 + 7 * number, height=90 - 4 * number),
            orientation=1 + number % 8,
        )
        for number in range(10)
    ]


def dataset(paths: list[Path], name: str = "none", *, labelled: bool = True) -> ImageDataset:
    return over(FileSource(paths), name, labelled=labelled)


def over(source: ImageSource, name: str, *, labelled: bool = True) -> ImageDataset:
    transform = create_train_transform(name, spec=SPEC, seed=5)
    return ImageDataset(source, LABELS if labelled else None, transform)


def stored(paths: list[Path], root: Path) -> StoredSource:
    """Return the images shrunk to 40 pixels, in a store."""
    store = PixelStore(root, tag="short-40", owner="test")
    decode = partial(decode_resized, shorter_side=40, max_pixels=10**6)
    places = fill_store(store, paths, decode, num_threads=2, reporter=Reporter())
    return StoredSource(store, paths, places)


def test_all_rows_in_order_without_a_sampler(paths: list[Path]) -> None:
    loader = create_loader(dataset(paths), batch_size=4, num_workers=0)
    batches = list(loader)
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == LABELS
    images = torch.cat([batch["image"] for batch in batches])
    assert (images.dtype, images.shape) == (torch.uint8, (10, 16, 16, 3))
    assert images.is_contiguous()
    assert all("color_matrix" not in batch for batch in batches)
    expected = [EvalTransform(SPEC)(Watched(noise(seed=row))).pixels for row in range(10)]
    np.testing.assert_array_equal(images.numpy(), np.stack(expected))


def test_images_without_labels_bear_minus_one(paths: list[Path]) -> None:
    (batch,) = create_loader(dataset(paths, labelled=False), batch_size=10, num_workers=0)
    assert batch["label"].tolist() == [-1] * 10


@pytest.mark.parametrize("name", ["none", "light", "medium", "strong"])
def test_a_batch_is_its_items_one_by_one(name: str, paths: list[Path]) -> None:
    data = dataset(paths, name)
    draws = [Draw(row, 1, repeat) for row in (3, 9, 0) for repeat in (0, 1)]
    batch = data.__getitems__(draws)
    assert set(batch) - {"image", "label", "index"} == (
        {"color_matrix"} if name in ("medium", "strong") else set()
    )
    assert {str(value.dtype) for value in (batch["label"], batch["index"])} == {"torch.int64"}
    for place, draw in enumerate(draws):
        alone = data[draw]
        assert set(alone) == set(batch)
        assert (int(alone["index"]), int(alone["label"])) == (draw.row, LABELS[draw.row])
        for key, value in alone.items():
            assert isinstance(value, Tensor)
            assert torch.equal(value, batch[key][place])  # type: ignore[literal-required]
    if name in ("medium", "strong"):
        assert (batch["color_matrix"].dtype, batch["color_matrix"].shape) == (
            torch.float32,
            (6, 3, 4),
        )


def epochs_read_by(num_workers: int, data: ImageDataset) -> list[Batch]:
    """Return two weighted epochs, each as one batch."""
    weights = weighted(np.asarray(LABELS), 2)
    sampler = EpochSampler(weights, num_images=10, batch_size=5, seed=5)
    loader = create_loader(data, batch_size=5, num_workers=num_workers, sampler=sampler)
    read = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        read.append(
            Batch(
                image=torch.cat([batch["image"] for batch in batches]),
                label=torch.cat([batch["label"] for batch in batches]),
                index=torch.cat([batch["index"] for batch in batches]),
                color_matrix=torch.cat([batch["color_matrix"] for batch in batches]),
            )
        )
    return read


def assert_same_batches(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["label"], other["label"])
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["color_matrix"], other["color_matrix"])


@pytest.mark.parametrize("kept", [False, True], ids=["files", "store"])
def test_augmented_batches_do_not_depend_on_the_workers_and_epochs_differ(
    kept: bool, jpegs: list[Path], tmp_path: Path
) -> None:
    data = over(stored(jpegs, tmp_path) if kept else FileSource(jpegs), "strong")
    alone = epochs_read_by(0, data)
    assert_same_batches(epochs_read_by(2, data), alone)
    assert not torch.equal(alone[0]["index"], alone[1]["index"])
    views = {image.numpy().tobytes() for epoch in alone for image in epoch["image"]}
    assert len(views) == 20


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["files", "store"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_batches_do_not_depend_on_how_workers_start(
    method: str, kept: bool, jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = over(stored(jpegs, tmp_path) if kept else FileSource(jpegs), "strong")
    monkeypatch.setattr(dataset_module, "choose_worker_start_method", lambda **_: method)
    assert_same_batches(epochs_read_by(1, data), epochs_read_by(0, data))


def test_from_a_store_come_the_draws_of_the_files(jpegs: list[Path], tmp_path: Path) -> None:
    from_files, from_store = (
        epochs_read_by(0, over(source, "medium"))
        for source in (FileSource(jpegs), stored(jpegs, tmp_path))
    )
    for one, other in zip(from_files, from_store, strict=True):
        assert torch.equal(one["index"], other["index"])
        difference = (one["image"].float() - other["image"].float()).abs()
        assert difference.mean() < 4
        assert difference.max() > 0, "shrunk twice is not shrunk once"
        torch.testing.assert_close(one["color_matrix"], other["color_matrix"], rtol=0, atol=0.01)


def test_a_draw_reaches_the_augmentation(paths: list[Path]) -> None:
    data = dataset(paths, "strong")
    transform = create_train_transform("strong", spec=SPEC, seed=5)
    for draw in (Draw(3, 0, 0), Draw(3, 1, 0), Draw(3, 1, 1)):
        pixels, colour = transform(Watched(noise(seed=3)), draw)
        assert colour is not None
        np.testing.assert_array_equal(data[draw]["image"].numpy(), pixels)
        np.testing.assert_array_equal(data[draw]["color_matrix"].numpy(), colour)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_breaks_during_training_is_named(paths: list[Path], num_workers: int) -> None:
    data = dataset(paths)
    paths[2].write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/2\.png: empty file\. It read well before training"):
        list(create_loader(data, batch_size=5, num_workers=num_workers))


class Killed(EvalTransform):
    """Ends the process that reads, as the system does where memory runs out."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Transform nothing."""
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_reading_process_that_is_killed_is_explained(paths: list[Path]) -> None:
    data = ImageDataset(FileSource(paths), LABELS, Killed(SPEC))
    message = r"reads images ended: DataLoader worker .*lower data\.num_workers"
    with pytest.raises(TrainingError, match=message), translate_worker_errors():
        list(create_loader(data, batch_size=5, num_workers=1))


def test_a_jpeg_that_breaks_during_training_is_named(jpegs: list[Path]) -> None:
    data = dataset(jpegs, "light")
    assert open_image(jpegs[4]).height
    jpegs[4].write_bytes(jpegs[4].read_bytes()[:-300])
    with pytest.raises(DataError, match=r"4\.jpg: truncated\. It read well .*then resume"):
        data[Draw(4, 0, 0)]


def test_a_file_over_the_limit_is_named(paths: list[Path]) -> None:
    small = ImageDataset(FileSource(paths, max_pixels=100), LABELS, EvalTransform(SPEC))
    with pytest.raises(DataError, match=r"cat/0\.png: too large: 12x10"):
        small[0]
