"""Tests of the dataset and its loaders, with any number of workers."""

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
from finetune.data.images.decode import open_image
from finetune.data.images.source import FileSource, ImageSource
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.data.samplers.sampling_weights import weighted
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.data.transforms.presets import create_train_transform
from finetune.errors import DataError, TrainingError
from finetune.types import Draw, PreprocessSpec, ReadOptions, Reporter
from tests.support.helpers import create_noise, create_smooth_image
from tests.support.pictures import RecordingImage, write_jpeg

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
            create_smooth_image(width=60 + 7 * number, height=90 - 4 * number),
            orientation=1 + number % 8,
        )
        for number in range(10)
    ]


def make_dataset(paths: list[Path], name: str = "none", *, labelled: bool = True) -> ImageDataset:
    return make_dataset_of(FileSource(paths), name, labelled=labelled)


def make_dataset_of(source: ImageSource, name: str, *, labelled: bool = True) -> ImageDataset:
    transform = create_train_transform(name, spec=SPEC, seed=5)
    return ImageDataset(source, LABELS if labelled else None, transform)


def make_stored_source(paths: list[Path], root: Path) -> StoredSource:
    """Return the images shrunk to a shorter side of 40 pixels, in a store."""
    store = PixelStore(root, tag="short-40", owner="test")
    decode = partial(decode_resized, shorter_side=40, options=ReadOptions(max_pixels=10**6))
    locations = fill_store(store, paths, decode, num_threads=2, reporter=Reporter())
    return StoredSource(store, paths, locations)


def test_loader_without_sampler_yields_all_rows_in_order(paths: list[Path]) -> None:
    loader = create_loader(make_dataset(paths), batch_size=4, num_workers=0)
    batches = list(loader)
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == LABELS
    images = torch.cat([batch["image"] for batch in batches])
    assert (images.dtype, images.shape) == (torch.uint8, (10, 16, 16, 3))
    assert images.is_contiguous()
    assert all("color_matrix" not in batch for batch in batches)
    expected = [
        EvalTransform(SPEC)(RecordingImage(create_noise(seed=row))).pixels for row in range(10)
    ]
    np.testing.assert_array_equal(images.numpy(), np.stack(expected))


def test_loader_without_labels_gives_minus_one(paths: list[Path]) -> None:
    (batch,) = create_loader(make_dataset(paths, labelled=False), batch_size=10, num_workers=0)
    assert batch["label"].tolist() == [-1] * 10


@pytest.mark.parametrize("name", ["none", "light", "medium", "strong"])
def test_getitems_equals_single_items(name: str, paths: list[Path]) -> None:
    data = make_dataset(paths, name)
    draws = [Draw(row, 1, repeat) for row in (3, 9, 0) for repeat in (0, 1)]
    batch = data.__getitems__(draws)
    assert set(batch) - {"image", "label", "index"} == (
        {"color_matrix"} if name in ("medium", "strong") else set()
    )
    assert {str(value.dtype) for value in (batch["label"], batch["index"])} == {"torch.int64"}
    for position, draw in enumerate(draws):
        sample = data[draw]
        assert set(sample) == set(batch)
        assert (int(sample["index"]), int(sample["label"])) == (draw.row, LABELS[draw.row])
        for key, value in sample.items():
            assert isinstance(value, Tensor)
            assert torch.equal(value, batch[key][position])  # type: ignore[literal-required]
    if name in ("medium", "strong"):
        assert (batch["color_matrix"].dtype, batch["color_matrix"].shape) == (
            torch.float32,
            (6, 3, 4),
        )


def read_epochs(num_workers: int, data: ImageDataset) -> list[Batch]:
    """Return two weighted epochs that a loader reads, each as one batch."""
    weights = weighted(np.asarray(LABELS), 2)
    sampler = EpochSampler(weights, num_images=10, batch_size=5, seed=5)
    loader = create_loader(data, batch_size=5, num_workers=num_workers, sampler=sampler)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        epochs.append(
            Batch(
                image=torch.cat([batch["image"] for batch in batches]),
                label=torch.cat([batch["label"] for batch in batches]),
                index=torch.cat([batch["index"] for batch in batches]),
                color_matrix=torch.cat([batch["color_matrix"] for batch in batches]),
            )
        )
    return epochs


def assert_same_batches(actual: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["label"], other["label"])
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["color_matrix"], other["color_matrix"])


@pytest.mark.parametrize("is_stored", [False, True], ids=["files", "store"])
def test_loader_augmented_batches_do_not_depend_on_workers(
    is_stored: bool, jpegs: list[Path], tmp_path: Path
) -> None:
    data = make_dataset_of(
        make_stored_source(jpegs, tmp_path) if is_stored else FileSource(jpegs), "strong"
    )
    single = read_epochs(0, data)
    assert_same_batches(read_epochs(2, data), single)
    assert not torch.equal(single[0]["index"], single[1]["index"])
    views = {image.numpy().tobytes() for epoch in single for image in epoch["image"]}
    assert len(views) == 20


@pytest.mark.slow
@pytest.mark.parametrize("is_stored", [False, True], ids=["files", "store"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_loader_batches_do_not_depend_on_start_method(
    method: str, is_stored: bool, jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset_of(
        make_stored_source(jpegs, tmp_path) if is_stored else FileSource(jpegs), "strong"
    )
    monkeypatch.setattr(dataset_module, "choose_worker_start_method", lambda **_: method)
    assert_same_batches(read_epochs(1, data), read_epochs(0, data))


def test_loader_of_store_gives_same_draws_as_files(jpegs: list[Path], tmp_path: Path) -> None:
    from_files, from_store = (
        read_epochs(0, make_dataset_of(source, "medium"))
        for source in (FileSource(jpegs), make_stored_source(jpegs, tmp_path))
    )
    for one, other in zip(from_files, from_store, strict=True):
        assert torch.equal(one["index"], other["index"])
        difference = (one["image"].float() - other["image"].float()).abs()
        assert difference.mean() < 4
        assert difference.max() > 0, "resizing twice must differ from resizing once"
        torch.testing.assert_close(one["color_matrix"], other["color_matrix"], rtol=0, atol=0.01)


def test_dataset_passes_draw_to_transform(paths: list[Path]) -> None:
    data = make_dataset(paths, "strong")
    transform = create_train_transform("strong", spec=SPEC, seed=5)
    for draw in (Draw(3, 0, 0), Draw(3, 1, 0), Draw(3, 1, 1)):
        pixels, color_matrix = transform(RecordingImage(create_noise(seed=3)), draw)
        assert color_matrix is not None
        np.testing.assert_array_equal(data[draw]["image"].numpy(), pixels)
        np.testing.assert_array_equal(data[draw]["color_matrix"].numpy(), color_matrix)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_broken_file_raises_data_error_with_path(
    paths: list[Path], num_workers: int
) -> None:
    data = make_dataset(paths)
    paths[2].write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/2\.png: empty file\..*resume"):
        list(create_loader(data, batch_size=5, num_workers=num_workers))


class KillingTransform(EvalTransform):
    """Transform that kills its process, as the system does without memory."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Kill the process."""
        os.kill(os.getpid(), signal.SIGKILL)


def test_loader_killed_worker_raises_training_error_with_setting(paths: list[Path]) -> None:
    data = ImageDataset(FileSource(paths), LABELS, KillingTransform(SPEC))
    message = r"DataLoader worker .*data\.num_workers"
    with pytest.raises(TrainingError, match=message), translate_worker_errors():
        list(create_loader(data, batch_size=5, num_workers=1))


def test_loader_truncated_jpeg_raises_data_error_with_path(jpegs: list[Path]) -> None:
    data = make_dataset(jpegs, "light")
    assert open_image(jpegs[4]).height
    jpegs[4].write_bytes(jpegs[4].read_bytes()[:-300])
    with pytest.raises(DataError, match=r"4\.jpg: truncated JPEG\..*resume"):
        data[Draw(4, 0, 0)]


def test_dataset_file_over_max_pixels_raises_data_error_with_path(paths: list[Path]) -> None:
    small = ImageDataset(
        FileSource(paths, options=ReadOptions(max_pixels=100)), LABELS, EvalTransform(SPEC)
    )
    with pytest.raises(DataError, match=r"cat/0\.png: too large: 12x10"):
        small[0]
