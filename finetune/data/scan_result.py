"""Results of a scan, by file names alone: labelled images, or images to predict."""

from dataclasses import dataclass, field
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
        class_parents: Folders of the class folders relative to ``root``, such as "train".
    """

    root: Path
    samples: tuple[Sample, ...]
    rejected: tuple[RejectedFile, ...] = ()
    empty_classes: tuple[tuple[str, Split | None], ...] = ()
    notes: tuple[str, ...] = ()
    class_parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageList:
    """Image files that need no labels.

    Attributes:
        files: Image files in a stable order.
        rejected: Other files, and rows of Parquet files without an image.
        names: Path of a file that was unpacked to the Parquet file and row that it comes from.
    """

    files: list[Path] = field(default_factory=list)
    rejected: list[RejectedFile] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def get_name(self, path: str) -> str:
        """Return what a file is called for the user: its path, or Parquet file and row."""
        return self.names.get(path, path)
