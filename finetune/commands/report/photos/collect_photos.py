"""Pictures of a run for its report."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from finetune.commands.report.photos.thumbnails import draw_thumbnails
from finetune.commands.report.photos.time_budget import TimeBudget
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.report.photos.photo_card import PhotoCard
from finetune.report.photos.photo_facts import PhotoFacts
from finetune.report.run_facts import RunFacts
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
    return replace(facts, photos=PhotoFacts(thumbnails=thumbnails, unreadable=unreadable))
