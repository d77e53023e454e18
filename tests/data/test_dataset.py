"""Batches hold the right pixels, labels and rows, however many processes read them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data.augment import EvalTransform, train_transform
from finetune.data.dataset import ImageDataset, create_loader
from finetune.data.sampler import EpochSampler, inverse_frequency_weights
from finetune.errors import DataError
from finetune.types import Draw, PreprocessSpec
from tests.helpers import noise

SPEC = PreprocessSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
LABELS = [0] * 6 + [1] * 4


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


def dataset(paths: list[Path], name: str = "none", *, labelled: bool = True) -> ImageDataset:
    transform = train_transform(name, spec=SPEC, seed=5)
    return ImageDataset(paths, LABELS if labelled else None, transform)


def test_all_rows_in_order_without_a_sampler(paths: list[Path]) -> None:
    loader = create_loader(dataset(paths), batch_size=4, num_workers=0)
    batches = list(loader)
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == LABELS
    images = torch.cat([batch["image"] for batch in batches])
    assert (images.dtype, images.shape) == (torch.uint8, (10, 16, 16, 3))
    expected = [EvalTransform(SPEC)(noise(seed=row)) for row in range(10)]
    np.testing.assert_array_equal(images.numpy(), np.stack(expected))


def test_images_without_labels_bear_minus_one(paths: list[Path]) -> None:
    (batch,) = create_loader(dataset(paths, labelled=False), batch_size=10, num_workers=0)
    assert batch["label"].tolist() == [-1] * 10


def epochs_read_by(num_workers: int, paths: list[Path]) -> list[tuple[Tensor, Tensor]]:
    weights = inverse_frequency_weights(LABELS, 2)
    sampler = EpochSampler(weights, num_images=10, batch_size=5, seed=5)
    loader = create_loader(
        dataset(paths, "strong"), batch_size=5, num_workers=num_workers, sampler=sampler
    )
    read = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        read.append(
            (
                torch.cat([batch["index"] for batch in batches]),
                torch.cat([batch["image"] for batch in batches]),
            )
        )
    return read


def test_augmented_batches_do_not_depend_on_the_workers_and_epochs_differ(
    paths: list[Path],
) -> None:
    alone, together = (epochs_read_by(num_workers, paths) for num_workers in (0, 2))
    for (rows, images), (worker_rows, worker_images) in zip(alone, together, strict=True):
        assert torch.equal(rows, worker_rows)
        assert torch.equal(images, worker_images)
    assert not torch.equal(alone[0][0], alone[1][0])
    views = {image.numpy().tobytes() for _, images in alone for image in images}
    assert len(views) == 20


def test_a_draw_reaches_the_augmentation(paths: list[Path]) -> None:
    data = dataset(paths, "strong")
    transform = train_transform("strong", spec=SPEC, seed=5)
    for draw in (Draw(3, 0, 0), Draw(3, 1, 0), Draw(3, 1, 1)):
        expected = transform(noise(seed=3), draw)
        np.testing.assert_array_equal(data[draw]["image"].numpy(), expected)


def test_a_file_that_breaks_during_training_is_named(paths: list[Path]) -> None:
    data = dataset(paths)
    paths[2].write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/2\.png: empty file\. It read well before training"):
        data[2]
    small = ImageDataset(paths, LABELS, EvalTransform(SPEC), max_pixels=100)
    with pytest.raises(DataError, match="too large: 12x10"):
        small[0]
