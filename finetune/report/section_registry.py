"""Sections of the page in their order, each with its builder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.report.run_facts import RunFacts
from finetune.report.sections.data_section import build_data
from finetune.report.sections.diagnosis_section import build_diagnosis
from finetune.report.sections.evaluation.calibration_section import build_calibration
from finetune.report.sections.evaluation.class_section import build_classes
from finetune.report.sections.evaluation.confusion_section import build_confusion
from finetune.report.sections.evaluation.folds_section import build_folds
from finetune.report.sections.evaluation.metrics_section import build_metrics
from finetune.report.sections.headline import build_headline
from finetune.report.sections.photos.augmented_section import build_augmented
from finetune.report.sections.photos.duplicates_section import build_duplicates
from finetune.report.sections.photos.feature_map_section import build_feature_map
from finetune.report.sections.photos.mistakes_section import build_mistakes
from finetune.report.sections.photos.network_pictures_section import build_network_pictures
from finetune.report.sections.photos.pairs_section import build_pairs
from finetune.report.sections.reproduce_section import build_reproduce
from finetune.report.sections.training.curves_section import build_curves
from finetune.report.sections.training.network_section import build_network_section
from finetune.report.sections.training.plan_section import build_plan_section


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


SECTIONS: tuple[SectionKind, ...] = (
    SectionKind("headline", "Summary", build_headline),
    SectionKind("diagnosis", "Diagnosis", build_diagnosis),
    SectionKind("data", "Data", build_data),
    SectionKind("duplicates", "Duplicates and leaks", build_duplicates),
    SectionKind("plan", "Plan", build_plan_section),
    SectionKind("augmented", "Augmented images", build_augmented),
    SectionKind("curves", "Curves", build_curves),
    SectionKind("folds", "Folds", build_folds),
    SectionKind("metrics", "Metrics", build_metrics),
    SectionKind("confusion", "Confusions", build_confusion),
    SectionKind("pairs", "Confused pairs", build_pairs),
    SectionKind("mistakes", "Mistakes", build_mistakes),
    SectionKind("classes", "Classes", build_classes),
    SectionKind("calibration", "Calibration", build_calibration),
    SectionKind("feature_map", "Map of the images", build_feature_map),
    SectionKind("network_pictures", "Filters and feature maps", build_network_pictures),
    SectionKind("network", "Network health", build_network_section),
    SectionKind("reproduce", "Reproduce", build_reproduce),
)


def build_sections(facts: RunFacts) -> tuple[Section, ...]:
    """Return the sections for which the run has something to show, in their order."""
    contents = ((kind, kind.build(facts)) for kind in SECTIONS)
    return tuple(
        Section(kind.name, kind.title, content) for kind, content in contents if content is not None
    )
