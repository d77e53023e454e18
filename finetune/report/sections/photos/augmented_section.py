"""Section with augmented training images."""

from dataclasses import dataclass
from typing import Any

from finetune.report.run_facts import RunFacts

_KEYS = (
    "augment.name", "augment.min_crop_scale", "augment.hflip", "augment.vflip", "augment.rot90",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AugmentedSection:
    """Training images as their transform changes them.

    Attributes:
        picture: Data URI of the sheet: in each row an image and augmented views of it.
        settings: Key and value of the settings that decide on the views.
    """

    picture: str
    settings: tuple[tuple[str, Any], ...]


def build_augmented(facts: RunFacts) -> AugmentedSection | None:
    """Return the sheet of a run; None without one."""
    if facts.photos is None or not facts.photos.augmented:
        return None
    settings = tuple((key, facts.config[key]) for key in _KEYS if key in facts.config)
    return AugmentedSection(facts.photos.augmented, settings)
