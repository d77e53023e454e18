"""Map of the features of the held-out images and of a sample of training images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finetune.commands.report.photos.embedding import (
    MAX_POINTS,
    MIN_POINTS,
    NUM_NEIGHBORS,
    choose_num_points,
    compare_neighbors,
    place_points,
    reduce_features,
)
from finetune.commands.report.photos.run_network import RunNetwork
from finetune.commands.report.photos.sprite_sheet import choose_side, draw_sprite_sheet, shrink
from finetune.commands.report.photos.time_budget import TimeBudget
from finetune.data.manifest import Manifest
from finetune.report.image_thresholds import get_image_thresholds
from finetune.report.photos.feature_map import FeatureMap
from finetune.report.run_facts import RunFacts
from finetune.types import Split
from finetune.units import format_count

_BATCH_SIZE = 16
_MIN_TRAINING = 200
"""Training images that are shown even if there are fewer held-out ones."""

_PASS_FRACTION = 0.5
"""Part of the remaining time that the passes through the network may take."""


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """Images that the map may show, in an order whose beginning is a random sample."""

    paths: Sequence[str]
    target: NDArray[Any]
    predicted: NDArray[np.int64]
    is_wrong: NDArray[np.bool_]
    is_training: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> "_Images":
        return _Images(
            [self.paths[row] for row in rows],
            self.target[rows],
            self.predicted[rows],
            self.is_wrong[rows],
            self.is_training[rows],
        )


def draw_feature_map(
    facts: RunFacts, split: str, manifest: Manifest, network: RunNetwork, budget: TimeBudget
) -> FeatureMap | str:
    """Return the map of the images of a split and of as many training images, or of a sample.

    Args:
        facts: Facts of the run.
        split: Split with predictions.
        manifest: Images of the run.
        network: Network of the run.
        budget: Time; it decides on the number of images.

    Returns:
        A sentence where there are too few images, or the time suffices for too few.
    """
    images = _list_images(facts, split, manifest)
    rows, features, pictures, is_complete = _compute_features(
        images.paths, manifest.root, network, budget
    )
    if len(rows) < MIN_POINTS:
        return _explain_lack(len(rows), len(images.paths), is_out_of_time=not is_complete)
    components = reduce_features(features)
    count = choose_num_points(components, budget.remaining)
    if count < MIN_POINTS:
        return _explain_lack(count, len(images.paths), is_out_of_time=True)
    num_available = len(images.paths)
    images, components = images.take(rows[:count]), components[:count]
    if images.target.ndim == 1:
        names: tuple[str, ...] = facts.classes
        labels = images.target.astype(np.int64)
        neighbors = compare_neighbors(components, labels, names, ~images.is_training)
    else:
        names, labels = _name_combinations(images.target, facts.classes)
        neighbors = []
    sheet = draw_sprite_sheet(pictures[:count])
    return FeatureMap(
        paths=images.paths,
        positions=place_points(components),
        names=names,
        labels=labels,
        predicted=images.predicted,
        is_wrong=images.is_wrong,
        is_training=images.is_training,
        num_neighbors=min(NUM_NEIGHBORS, count - 1),
        neighbors=neighbors,
        sheet=sheet.uri,
        side_px=sheet.side_px,
        num_columns=sheet.num_columns,
        num_available=num_available,
    )


def _list_images(facts: RunFacts, split: str, manifest: Manifest) -> _Images:
    """Return the images of a split, and as many training images, in a random order."""
    predictions = facts.predictions[split]
    table, target = predictions.probabilities, predictions.target
    if target.ndim == 1:
        predicted = table.argmax(axis=1)
        is_wrong = predicted != target
    else:
        predicted = np.full(len(target), -1)
        is_wrong = ((table >= get_image_thresholds(facts, predictions)) != (target > 0)).any(axis=1)
    samples = manifest.get_samples(Split.TRAIN)
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(samples))[
        : min(max(len(target), _MIN_TRAINING), MAX_POINTS // 2)
    ]
    training = [samples[row] for row in chosen.tolist()]
    held_out = _Images(predictions.paths, target, predicted, is_wrong, np.zeros(len(target), bool))
    if not training:
        return held_out.take(generator.permutation(len(target))[:MAX_POINTS])
    no_prediction, not_wrong = np.full(len(training), -1), np.zeros(len(training), bool)
    joined = replace(
        held_out,
        paths=[*held_out.paths, *(sample.path for sample in training)],
        target=np.concatenate([target, manifest.encode_targets(training)]),
        predicted=np.concatenate([predicted, no_prediction]),
        is_wrong=np.concatenate([is_wrong, not_wrong]),
        is_training=np.concatenate([held_out.is_training, ~not_wrong]),
    )
    return joined.take(generator.permutation(len(joined.paths))[:MAX_POINTS])


def _compute_features(
    paths: Sequence[str], root: Path, network: RunNetwork, budget: TimeBudget
) -> tuple[NDArray[np.int64], NDArray[np.float32], list[Image.Image], bool]:
    """Return rows, features and pictures of readable images, and whether there was time for all."""
    side = choose_side(len(paths))
    end = budget.remaining * (1 - _PASS_FRACTION)
    rows: list[int] = []
    is_complete = True
    pictures: list[Image.Image] = []
    with torch.inference_mode(), network.capture_features() as features:
        for first in range(0, len(paths), _BATCH_SIZE):
            if budget.remaining <= end:
                is_complete = False
                break
            batch = range(first, min(first + _BATCH_SIZE, len(paths)))
            read = [(row, network.read_pixels(root / paths[row])) for row in batch]
            known = [(row, pixels) for row, pixels in read if pixels is not None]
            if not known:
                continue
            network.network(network.prepare([pixels for _, pixels in known]))
            rows += [row for row, _ in known]
            pictures += [shrink(pixels, side) for _, pixels in known]
    if not rows or not features:
        return np.zeros(0, np.int64), np.zeros((0, 1), np.float32), [], is_complete
    return np.array(rows), torch.cat(features).numpy(), pictures, is_complete


def _name_combinations(
    target: NDArray[Any], classes: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names of the combinations of labels, and that of each image, shape (N,)."""
    texts = [
        ", ".join(classes[column] for column in np.flatnonzero(row).tolist()) or "no label"
        for row in target
    ]
    names = tuple(dict.fromkeys(texts))
    index = {name: number for number, name in enumerate(names)}
    return names, np.array([index[text] for text in texts])


def _explain_lack(num_images: int, num_available: int, *, is_out_of_time: bool) -> str:
    if not is_out_of_time:
        return (
            f"A map of the images needs {MIN_POINTS} of them; {num_images} of {num_available} can "
            f"be read."
        )
    return (
        f"A map of the images is left out: the time for pictures suffices for "
        f"{format_count(num_images, 'image')} of {format_count(num_available)}, and it needs "
        f"{MIN_POINTS}."
    )
