"""Pictures of a run for its report."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from finetune.builders.augmentation import build_augmentation
from finetune.commands.report.photos.augmented_sheet import draw_augmented_sheet
from finetune.commands.report.photos.draw_feature_map import draw_feature_map
from finetune.commands.report.photos.draw_network_pictures import draw_network_pictures
from finetune.commands.report.photos.run_network import RunNetwork, load_run_network
from finetune.commands.report.photos.thumbnails import SIDE_PX, draw_thumbnails, encode_webp
from finetune.commands.report.photos.time_budget import TimeBudget
from finetune.commands.stored_run import (
    check_table_rows,
    read_stored_config,
    read_stored_manifest,
)
from finetune.config.schema import Config
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.manifest import Manifest
from finetune.data.training_data import TrainingData
from finetune.errors import DataError, FinetuneError
from finetune.report.comparison.changed_section import MAX_PICTURES, build_changed
from finetune.report.photos.photo_card import PhotoCard
from finetune.report.photos.photo_facts import PhotoFacts
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import choose_main_split
from finetune.report.sections.photos.duplicates_section import build_duplicates
from finetune.report.sections.photos.mistakes_section import build_mistakes
from finetune.report.sections.photos.pairs_section import build_pairs
from finetune.saliency.file_saliency import compute_file_saliency, draw_overlay
from finetune.system.run_folder import RunFolder


class _PhotoSection(Protocol):
    @property
    def cards(self) -> Iterator[PhotoCard]: ...


_SECTIONS: tuple[Callable[[RunFacts], _PhotoSection | None], ...] = (
    build_mistakes,
    build_pairs,
    build_duplicates,
)
"""Sections with photos, the most important first: they are drawn in this order."""

MIN_NETWORK_SECONDS = 3.0
"""Time from which the network is loaded, and scikit-learn for its map."""

_SALIENCY_FRACTION = 0.35
"""Part of the remaining time that saliency maps may take."""


def add_photos(run: RunFolder, facts: RunFacts, *, seconds: float) -> RunFacts:
    """Return the facts of a run with the pictures that its report shows.

    Args:
        run: Run folder.
        facts: Facts without pictures.
        seconds: Time that they may take; what it does not suffice for is left out, which the page
            says.

    Raises:
        DataError: The manifest is damaged.
    """
    budget = TimeBudget(seconds)
    config = read_stored_config(run)
    manifest = read_stored_manifest(run, config)
    empty = replace(facts, photos=PhotoFacts())
    sections = [build(empty) for build in _SECTIONS]
    paths = [card.path for section in sections if section is not None for card in section.cards]
    if problem := _find_moved_rows(manifest, paths):
        return replace(facts, photos=PhotoFacts(skipped=(problem,)))
    thumbnails, unreadable = draw_thumbnails(
        paths, root=manifest.root, options=config.data.read_options, budget=budget
    )
    photos = PhotoFacts(thumbnails=thumbnails, unreadable=unreadable)
    return replace(
        facts, photos=_add_network_pictures(photos, run, facts, config, manifest, budget)
    )


def add_changed_photos(
    run: RunFolder, runs: Sequence[RunFacts], *, seconds: float
) -> list[RunFacts]:
    """Return the facts of runs that are compared, the first with thumbnails of changed images.

    Args:
        run: Folder of the first run, whose images they are.
        runs: Facts of the runs.
        seconds: Time that the thumbnails may take.

    Raises:
        DataError: The manifest is damaged.
    """
    changed = build_changed(runs)
    if changed is None:
        return list(runs)
    config = read_stored_config(run)
    manifest = read_stored_manifest(run, config)
    if _find_moved_rows(manifest, changed.paths[:MAX_PICTURES]):
        return list(runs)
    drawn, reasons = draw_thumbnails(
        changed.paths[:MAX_PICTURES],
        root=manifest.root,
        options=config.data.read_options,
        budget=TimeBudget(seconds),
    )
    photos = PhotoFacts(thumbnails=drawn, unreadable=reasons)
    return [replace(runs[0], photos=photos), *runs[1:]]


def _find_moved_rows(manifest: Manifest, paths: Sequence[str]) -> str:
    """Return that pictures would be those of other rows of a table than in the run; "" if not.

    The last row is among those that are compared, as rows before it may have been added.
    """
    shown = {*paths, max(sample.path for sample in manifest.samples)}
    try:
        check_table_rows(manifest, [s for s in manifest.samples if s.path in shown])
    except DataError as error:
        return f"Pictures are left out: {error}"
    return ""


def _add_network_pictures(
    photos: PhotoFacts,
    run: RunFolder,
    facts: RunFacts,
    config: Config,
    manifest: Manifest,
    budget: TimeBudget,
) -> PhotoFacts:
    """Return the pictures with those that need the network, as far as there is time."""
    split = choose_main_split(facts)
    if facts.folds is not None:
        text = (
            f"A cross-validation has a network for each fold: finetune report "
            f"{shlex.quote(f'{facts.path}/folds/1')} draws the map of the images of one."
        )
        return replace(photos, skipped=(text,))
    if split is None or split not in facts.predictions:
        return photos
    if budget.remaining < MIN_NETWORK_SECONDS:
        return replace(photos, skipped=(_explain_lack(budget, facts),))
    try:
        network = load_run_network(run, config)
    except FinetuneError as error:
        text = f"Pictures of the network are left out: {str(error).rstrip('.')}."
        return replace(photos, skipped=(text,))
    path = next(iter(photos.thumbnails), facts.predictions[split].paths[0])
    pictures = draw_network_pictures(network, manifest.root, path)
    photos = replace(photos, network_pictures=pictures)
    photos = _add_augmented(photos, config, manifest, network)
    photos = _add_saliency(photos, facts, network, manifest, budget)
    drawn = draw_feature_map(facts, split, manifest, network, budget)
    if isinstance(drawn, str):
        return replace(photos, skipped=(*photos.skipped, drawn))
    return replace(photos, feature_map=drawn)


def _add_augmented(
    photos: PhotoFacts, config: Config, manifest: Manifest, network: RunNetwork
) -> PhotoFacts:
    """Return the pictures with a sheet of augmented training images."""
    data, spec = TrainingData.from_manifest(manifest), network.card.spec
    try:
        transform = build_augmentation(config.augment, data, spec, image_sizes=[], seed=config.seed)
    except FinetuneError as error:  # a pipeline whose file is gone
        text = f"Augmented training images are left out: {str(error).rstrip('.')}."
        return replace(photos, skipped=(*photos.skipped, text))
    source = FileSource(data.train.paths, options=config.data.read_options)
    dataset = ImageDataset(source, data.train.labels, transform)
    sheet = draw_augmented_sheet(dataset, spec, seed=config.seed)
    return photos if sheet is None else replace(photos, augmented=encode_webp(sheet))


def _add_saliency(
    photos: PhotoFacts,
    facts: RunFacts,
    network: RunNetwork,
    manifest: Manifest,
    budget: TimeBudget,
) -> PhotoFacts:
    """Return the pictures with saliency maps of the worst mistakes, in a part of the time."""
    mistakes = build_mistakes(replace(facts, photos=photos))
    worst = () if mistakes is None else mistakes.worst
    paths = [card.path for card in worst if card.picture]
    if not paths:
        return photos
    found = compute_file_saliency(
        network.bundle,
        [manifest.root / path for path in paths],
        device=network.device,
        budget_seconds=_SALIENCY_FRACTION * budget.remaining,
    )  # a photo that was deleted since its thumbnail was drawn has no map
    overlays = {}
    for path, pixels, result in zip(paths, found.pixels, found.maps.results, strict=False):
        if result is not None and result.is_trusted:
            overlay = draw_overlay(pixels, result.map)
            overlay.thumbnail((SIDE_PX, SIDE_PX))
            overlays[path] = encode_webp(overlay)
    return replace(photos, overlays=overlays, saliency_note=found.maps.describe())


def _explain_lack(budget: TimeBudget, facts: RunFacts) -> str:
    return (
        f"The map of the images and the pictures of the network are left out: the pictures of this "
        f"page may take {budget.seconds:.1f} s, a tenth of the run. finetune report "
        f"{shlex.quote(facts.path)} draws them."
    )
