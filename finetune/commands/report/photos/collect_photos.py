"""Pictures of a run for its report."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from finetune.commands.report.photos.draw_feature_map import draw_feature_map
from finetune.commands.report.photos.run_network import load_run_network
from finetune.commands.report.photos.thumbnails import draw_thumbnails
from finetune.commands.report.photos.time_budget import TimeBudget
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.errors import FinetuneError
from finetune.report.photos.photo_card import PhotoCard
from finetune.report.photos.photo_facts import PhotoFacts
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import choose_main_split
from finetune.report.sections.photos.duplicates_section import build_duplicates
from finetune.report.sections.photos.mistakes_section import build_mistakes
from finetune.report.sections.photos.pairs_section import build_pairs
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
    thumbnails, unreadable = draw_thumbnails(
        paths, root=manifest.root, options=config.data.read_options, budget=budget
    )
    photos = PhotoFacts(thumbnails=thumbnails, unreadable=unreadable)
    return replace(
        facts, photos=_add_network_pictures(photos, run, facts, config, manifest, budget)
    )


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
            f"A cross-validation has a network for each fold: finetune report {facts.path}/folds/1 "
            f"draws the map of the images of one."
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
    drawn = draw_feature_map(facts, split, manifest, network, budget)
    if isinstance(drawn, str):
        return replace(photos, skipped=(*photos.skipped, drawn))
    return replace(photos, feature_map=drawn)


def _explain_lack(budget: TimeBudget, facts: RunFacts) -> str:
    return (
        f"The map of the images and the pictures of the network are left out: the pictures of this "
        f"page may take {budget.seconds:.1f} s, a tenth of the run. finetune report "
        f"{shlex.quote(facts.path)} draws them."
    )
