"""Images on which the layers of a run's network are measured."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.builders import Training
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.stratified_sample import draw_stratified_sample
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.models.classifier import normalise

MIN_IMAGES, MAX_IMAGES = 8, 64
"""Least and largest number of images of the sample."""

_PASSES_PER_IMAGE = 200
"""Forward passes of training for which the sample has one image: about 1% of the time."""


class HealthSample:
    """Fixed sample of training images, as validation images are seen.

    Args:
        training: Objects of the run.
        device: Device of the network.
        num_images: Number of images; None for as many as about 1% of the time of training allows.
    """

    def __init__(
        self, training: Training, device: torch.device, *, num_images: int | None = None
    ) -> None:
        dataset = training.datamodule.train_eval_dataset or _build_dataset(training)
        if num_images is None:
            passes = 2 * training.images_per_epoch * training.config.trainer.epochs
            num_images = min(MAX_IMAGES, max(MIN_IMAGES, passes // _PASSES_PER_IMAGE))
        self._dataset, self._device, self._spec = dataset, device, training.network.spec
        self._rows = _draw_rows(dataset, num_images, seed=training.config.split_seed)

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Load normalised images, shape (B, C, H, W), and labels of rows from first to last.

        Raises:
            DataError: A file can no longer be read.
        """
        batch = self._dataset.__getitems__(self._rows[first:last])
        images = normalise(
            batch["image"].to(self._device), mean=self._spec.mean, std=self._spec.std
        )
        return images, batch["label"].to(self._device)


def _build_dataset(training: Training) -> ImageDataset:
    """Return the training images as validation images are seen, where no sample is measured."""
    train, options = training.data.train, training.config.data.read_options
    source = FileSource(train.paths, options=options)
    return ImageDataset(source, train.targets, EvalTransform(training.network.spec))


def _draw_rows(dataset: ImageDataset, num_images: int, *, seed: int) -> list[int]:
    """Return the rows of a sample in random order, stratified by class where there is one."""
    labels: NDArray[np.int64] = dataset.labels.numpy()
    generator = np.random.default_rng(seed)
    if labels.ndim == 1:
        rows = draw_stratified_sample(labels, num_images=num_images, seed=seed)
    else:
        rows = np.sort(generator.permutation(len(labels))[:num_images])
    return [int(row) for row in generator.permutation(rows)]
