"""Images on which an exported model is compared with the evaluated one, and for calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from finetune.bundle.model_card import ModelCard
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.data.layouts.layout_messages import join_names
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS
from finetune.data.manifest import Manifest
from finetune.data.multi_label.multi_hot import count_labels
from finetune.data.scan import list_images, scan
from finetune.errors import FinetuneError
from finetune.system import run_folder
from finetune.types import Reporter, Sample, Split
from finetune.units import format_count

Item = TypeVar("Item")

NUM_PARITY_IMAGES = 256
"""Images on which a file with the same numbers is compared."""

NUM_ACCURACY_IMAGES = 5000
"""Images on which a file with fewer bits is compared: its accuracy is measured."""


@dataclass(frozen=True, slots=True)
class ParityImages:
    """Images on which an exported model is compared with the evaluated one.

    Attributes:
        files: Image files, shape (N,).
        targets: Class indices, shape (N,), or 1 for each label of multi-label images, shape (N, K);
            None for images without labels.
        split: Split of the run that they are; None for other images.
    """

    files: tuple[Path, ...] = ()
    targets: Tensor | None = None
    split: Split | None = None


def select_parity_images(
    models: Sequence[Path],
    images: Path | None,
    *,
    card: ModelCard,
    reporter: Reporter,
    limit: int = NUM_PARITY_IMAGES,
) -> ParityImages:
    """Return given images, or those of a run: validation, else test, else training images.

    A cross-validation and its refitted network have no validation images of their own. Of more
    images than the limit, every n-th is taken.

    Args:
        models: Paths of the exported models.
        images: Folder, CSV, Parquet files or image; None for the images of the first run.
        card: Card of the exported model.
        reporter: Receiver of a warning where given images have labels that cannot be used.
        limit: Largest number of images.

    Raises:
        DataError: Given images do not exist, or the manifest of the run is damaged.
    """
    if images is not None:
        return _read_given_images(images, card, limit, reporter)
    manifest = _read_run_manifest(models)
    if manifest is None:
        return ParityImages()
    for split in (Split.VAL, Split.TEST, Split.TRAIN):
        samples = [s for s in manifest.get_samples(split) if (manifest.root / s.path).is_file()]
        if samples:
            return _pick_samples(manifest.root, samples, card, limit, split)
    return ParityImages()


def select_calibration_images(models: Sequence[Path], *, limit: int) -> tuple[Path, ...]:
    """Return training images of the first run among models, evenly spread; empty without any.

    Args:
        models: Paths of the exported models.
        limit: Largest number of images.

    Raises:
        DataError: The manifest of the run is damaged.
    """
    manifest = _read_run_manifest(models)
    if manifest is None:
        return ()
    paths = manifest.resolve_paths(manifest.get_samples(Split.TRAIN))
    return tuple(file for file in _spread(paths, limit) if file.is_file())


def _read_run_manifest(models: Sequence[Path]) -> Manifest | None:
    """Return the manifest of the first run among models; None without a run."""
    model = next((path for path in models if (path / "manifest.csv").is_file()), None)
    if model is None:
        return None
    run = run_folder.open_existing(model)
    return read_stored_manifest(run, read_stored_config(run))


def _read_given_images(
    images: Path, card: ModelCard, limit: int, reporter: Reporter
) -> ParityImages:
    """Return the images of a path, with labels where these are classes of the model."""
    tables = DEFAULT_TABLE_OPTIONS.adapt_to_other_data(card.classes if card.is_multi_label else ())
    try:
        found = scan(images, tables=tables)
    except FinetuneError:
        return ParityImages(tuple(_spread(list_images(images).files, limit)))
    splits = {sample.split for sample in found.samples}
    split = next((s for s in (Split.VAL, Split.TEST) if s in splits), None)
    samples = [s for s in found.samples if split is None or s.split is split]
    picked = _pick_samples(found.root, samples, card, limit, None)
    if picked.targets is None:
        reporter.warn(_explain_unused_labels(images, samples, card))
    return picked


def _explain_unused_labels(images: Path, samples: Sequence[Sample], card: ModelCard) -> str:
    """Return why labels of given images are not used, what follows, and the remedy."""
    unknown = [
        f"'{name}' ({format_count(count, 'image')})"
        for name, count in sorted(count_labels(samples).items())
        if name not in card.classes
    ]
    noun = "label" if card.is_multi_label else "class"
    if unknown:
        reason = f"the model has no {noun} {join_names(unknown)}"
    elif card.is_multi_label:
        reason = "these images have one class each, and the model gives labels"
    else:
        reason = "these images have several labels, and the model gives one class"
    return (
        f"The labels of {images} are not used: {reason}. The files are compared without metrics. "
        f"For metrics leave out what the model does not know; it knows {join_names(card.classes)}."
    )


def _pick_samples(
    root: Path, samples: Sequence[Sample], card: ModelCard, limit: int, split: Split | None
) -> ParityImages:
    """Return some of the samples, with targets if the model knows all of their classes."""
    chosen = _spread(samples, limit)
    manifest = Manifest(root, card.classes, tuple(chosen))
    files = tuple(manifest.resolve_paths(chosen))
    is_same_kind = manifest.is_multi_label == card.is_multi_label
    if not is_same_kind or set(count_labels(chosen)) - set(card.classes):
        return ParityImages(files, None, split)
    return ParityImages(files, torch.from_numpy(manifest.encode_targets(chosen)), split)


def _spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most ``limit`` of the items, every n-th."""
    step = max(1, -(-len(items) // limit))
    return list(items[::step])
