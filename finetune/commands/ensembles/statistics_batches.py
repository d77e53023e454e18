"""Training images in even, mixed batches, for the BatchNorm statistics of averaged networks."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.bundle.model_card import ModelCard
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.manifest import Manifest
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.models.classifier import normalise
from finetune.types import Sample, Split

BATCH_SIZE = 32
MAX_IMAGES = 2048


def iterate_statistics_batches(
    manifest: Manifest, card: ModelCard, *, batch_size: int = BATCH_SIZE
) -> Iterator[Tensor]:
    """Yield batches of normalised training images, at most 2,048 of them.

    Their order is drawn from the contents of the files and not from names or classes, so that each
    batch is a mixture of classes. Batches differ by at most one image in size: with two images or
    more none has a single one, whose variance BatchNorm cannot compute in a map of one pixel.

    Args:
        manifest: Images of a run.
        card: Preprocessing.
        batch_size: Largest number of images in a batch.
    """
    samples = _shuffle(manifest.get_samples(Split.TRAIN))[:MAX_IMAGES]
    spec = card.spec
    source = FileSource(manifest.resolve_paths(samples), options=card.read_options)
    dataset = ImageDataset(source, None, EvalTransform(spec))
    num_batches = max(1, -(-len(samples) // batch_size))
    for rows in np.array_split(np.arange(len(samples)), num_batches):
        image = dataset.__getitems__(rows.tolist())["image"]
        yield normalise(image, mean=spec.mean, std=spec.std)


def _shuffle(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples in an order drawn after their digests, or their paths without any."""
    ordered = sorted(samples, key=lambda sample: (sample.digest, sample.path))
    generator = torch.Generator().manual_seed(0)
    return [ordered[row] for row in torch.randperm(len(ordered), generator=generator).tolist()]
