"""Sections of the page in their order, each with its builder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import build_headline


@dataclass(frozen=True, slots=True)
class SectionKind:
    """Kind of section.

    Attributes:
        name: Id on the page, and name of the template.
        title: Heading, and text of the entry in the navigation.
        build: Builder of the content; None where a run lacks what the section is about.
    """

    name: str
    title: str
    build: Callable[[RunFacts], Any | None]


@dataclass(frozen=True, slots=True)
class Section:
    """Section of one page.

    Attributes:
        name: Id on the page, and name of the template.
        title: Heading.
        content: Dataclass that the template shows.
    """

    name: str
    title: str
    content: Any


SECTIONS: tuple[SectionKind, ...] = (SectionKind("headline", "Summary", build_headline),)


def build_sections(facts: RunFacts) -> tuple[Section, ...]:
    """Return the sections for which the run has something to show, in their order."""
    contents = ((kind, kind.build(facts)) for kind in SECTIONS)
    return tuple(
        Section(kind.name, kind.title, content) for kind, content in contents if content is not None
    )
