"""Sub-folders of a folder, and whether they hold images, class folders or runs of finetune."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from finetune.data.file_listing import (
    find_rejection_reason,
    holds_image,
    is_output_folder,
    list_folders,
    walk_files,
)
from finetune.data.layouts.split_names import is_folder_of_images_name, parse_split_name
from finetune.types import Split

_RUNS_NAME, _LATEST_NAME = "runs", "latest"
_UNREAD_PICTURES = frozenset(
    (".jxl", ".psd", ".svg", ".ico", ".cr2", ".cr3", ".nef",
     ".arw", ".dng", ".raw", ".orf", ".rw2", ".dcm", ".exr", ".tga")
)  # fmt: skip
"""Suffixes of pictures that are not read: a folder of them is a class folder."""


@dataclass(frozen=True)
class FolderContents:
    """Contents of a folder as far as they tell a layout; each is read when it is needed.

    Attributes:
        path: Path of the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @cached_property
    def has_own_images(self) -> bool:
        """Whether image files are directly in the folder."""
        files = (entry for entry in self.path.iterdir() if not entry.is_dir())
        return any(find_rejection_reason(file) is None for file in files)

    @cached_property
    def has_images(self) -> bool:
        """Whether image files are in the folder at any depth."""
        return holds_image(self.path, outputs=self._outputs)

    @cached_property
    def children(self) -> "tuple[FolderContents, ...]":
        """Visible sub-folders without those of finetune."""
        return tuple(f for f in self._folders if not (f.holds_only_outputs or f.is_emptied_runs))

    @cached_property
    def outputs(self) -> tuple[Path, ...]:
        """Sub-folders that hold nothing but what finetune has written."""
        return tuple(folder.path for folder in self._folders if folder.holds_only_outputs)

    @cached_property
    def classes(self) -> "tuple[FolderContents, ...]":
        """Sub-folders that hold images, which class folders do."""
        return tuple(child for child in self.children if child.has_images)

    @cached_property
    def holds_only_outputs(self) -> bool:
        """Whether it is a run, an audit or a model of finetune, or a folder of such, imageless."""
        return is_output_folder(self.path) or (not self.has_images and bool(self._outputs))

    @cached_property
    def is_emptied_runs(self) -> bool:
        """Whether it is a folder ``runs`` that holds nothing, or only the link to a former run."""
        if self.name != _RUNS_NAME:
            return False
        return not any(entry.name != _LATEST_NAME for entry in self.path.iterdir())

    @cached_property
    def _folders(self) -> "tuple[FolderContents, ...]":
        return tuple(FolderContents(path) for path in list_folders(self.path))

    _outputs: list[Path] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def has_other_files(self) -> bool:
        """Whether files are in the folder at any depth, such as labels, and no pictures."""
        suffixes = {file.suffix.lower() for file in walk_files(self.path) if _is_visible(file)}
        return bool(suffixes) and not suffixes & _UNREAD_PICTURES

    def pass_through(
        self, split: Split | None, class_names: Collection[str] = ()
    ) -> "FolderContents":
        """Return the folder that holds the class folders of a split.

        It is an only sub-folder of the same name or split, as in seg_train/seg_train, or one that
        is called images or data, and that is no class folder; else the folder itself.

        Args:
            split: Split of the folder; None if it has none.
            class_names: Names of the classes as far as they are known, in lower case.
        """
        folder = self
        while len(folder.classes) == 1:
            (child,) = folder.classes
            is_same = child.name.casefold() == folder.name.casefold()
            is_plain = is_folder_of_images_name(child.name) and not folder.has_own_images
            is_split = split is not None and parse_split_name(child.name) is split
            if not (is_same or is_plain or is_split):
                break
            holds_classes = any(c.name.casefold() in class_names for c in child.classes)
            if child.name.casefold() in class_names and not holds_classes:
                break
            folder = child
        return folder


def _is_visible(file: Path) -> bool:
    return find_rejection_reason(file) != ""
