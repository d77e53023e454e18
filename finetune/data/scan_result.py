"""Result of a scan: labelled images by file names alone."""

from dataclasses import dataclass
from pathlib import Path

from finetune.types import RejectedFile, Sample, Split


@dataclass(frozen=True, slots=True)
class Scan:
    """Contents of a data root by file names alone; no image has been opened.

    Attributes:
        root: Absolute folder that the samples' paths are relative to.
        samples: Labelled image files in a stable order.
        rejected: Files that are not images by their name or location.
        empty_classes: Class and split of class folders without images.
        notes: Lines that say what was recognised or passed over.
    """

    root: Path
    samples: tuple[Sample, ...]
    rejected: tuple[RejectedFile, ...] = ()
    empty_classes: tuple[tuple[str, Split | None], ...] = ()
    notes: tuple[str, ...] = ()
