"""Images of the check: a few to learn, and others to see what was learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.builders import Training
from finetune.data.dataset import Batch, ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.stratified_sample import draw_stratified_sample
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.types import Sample

NUM_IMAGES, NUM_HELD_OUT = 32, 192
"""Images to learn, and further training images that are only predicted."""

_MAX_CONTRADICTIONS = 2
"""Contradictions whose images are among those to learn, if the training images have any."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two images that are the same and have different labels.

    Attributes:
        rows: Their rows among the training images.
        paths: Their paths, as in the manifest.
        labels: Their labels.
        is_exact: Whether they have the same bytes or the same pixels; else they are near
            duplicates, which a network can still tell apart.
    """

    rows: tuple[int, int]
    paths: tuple[str, str]
    labels: tuple[str, str]
    is_exact: bool


@dataclass(frozen=True, slots=True)
class CheckRows:
    """Rows of the training images that the check uses.

    Attributes:
        learned: Rows to learn, shape (N,).
        held_out: Further rows of the same classes, without their duplicates, shape (M,).
    """

    learned: NDArray[np.int64]
    held_out: NDArray[np.int64]


def find_contradictions(samples: Sequence[Sample]) -> list[Contradiction]:
    """Return two images of each group of duplicates with several labels, exact duplicates first."""
    exact = pair_contradicting(samples, [sample.digest for sample in samples], is_exact=True)
    groups = {samples[one.rows[0]].duplicate_group for one in exact}
    near = [sample.duplicate_group for sample in samples]
    keys = ["" if group in groups else group for group in near]
    return exact + pair_contradicting(samples, keys, is_exact=False)


def pair_contradicting(
    samples: Sequence[Sample],
    keys: Sequence[str],
    *,
    is_exact: bool,
    rows: Sequence[int] | None = None,
) -> list[Contradiction]:
    """Return two images of each key with several labels.

    Args:
        samples: Images with labels.
        keys: What identifies the image of each sample; "" where that is not known.
        is_exact: Whether images with the same key have the same bytes or pixels.
        rows: Row of each sample among the training images; None if these are all of them.
    """
    first: dict[str, int] = {}
    found: dict[str, Contradiction] = {}
    for number, (sample, key) in enumerate(zip(samples, keys, strict=True)):
        if not key or key in found:
            continue
        start = first.setdefault(key, number)
        other = samples[start]
        if other.class_names != sample.class_names:
            found[key] = Contradiction(
                (start, number) if rows is None else (rows[start], rows[number]),
                (other.path, sample.path),
                (other.label, sample.label),
                is_exact,
            )
    return list(found.values())


def choose_rows(training: Training, contradictions: Sequence[Contradiction]) -> CheckRows:
    """Return the rows of the check, a pure function of the images and the seed.

    They are stratified by class. Images that contradict each other are among those to learn, and
    at least two classes if the training images have two.
    """
    train, seed = training.data.train, training.config.split_seed
    forced = list(
        dict.fromkeys(r for one in contradictions[:_MAX_CONTRADICTIONS] for r in one.rows)
    )
    drawn = draw_stratified_sample(train.labels, num_images=NUM_IMAGES, seed=seed)
    if len(np.unique(train.labels[drawn])) < 2 <= len(np.unique(train.labels)):
        other = np.flatnonzero(train.labels != train.labels[drawn[0]])[0]
        drawn = np.append(drawn[1:], other)
    kept = drawn[~np.isin(drawn, forced)][: NUM_IMAGES - len(forced)]
    learned = np.sort(np.concatenate([np.asarray(forced, np.int64), kept]))
    is_other = ~np.isin(train.groups, train.groups[learned])
    is_other &= np.isin(train.labels, train.labels[learned])
    others = np.flatnonzero(is_other)
    chosen = draw_stratified_sample(train.labels[others], num_images=NUM_HELD_OUT, seed=seed)
    held_out = others[np.random.default_rng(seed).permutation(chosen)]
    return CheckRows(learned, held_out)


def load_rows(training: Training, rows: NDArray[np.int64]) -> Batch:
    """Return training images as validation images are seen.

    Raises:
        DataError: A file can no longer be read.
    """
    train, options = training.data.train, training.config.data.read_options
    source = FileSource([train.paths[row] for row in rows], options=options)
    dataset = ImageDataset(source, train.targets[rows], EvalTransform(training.network.spec))
    return dataset.__getitems__(range(len(rows)))


def compute_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel, for pixels in [0, 1].

    Args:
        pixels: uint8 or uint16, shape (N, H, W, C).
    """
    white = 65_535 if pixels.dtype == torch.uint16 else 255
    values = pixels.float().flatten(0, 2) / white
    return values.mean(dim=0), values.std(dim=0, correction=0)
