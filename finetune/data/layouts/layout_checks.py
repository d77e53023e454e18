"""Checks that class folders are classes, and not splits, parts or copies of a data set."""

from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.data.layouts.folder_contents import FolderContents
from finetune.data.layouts.layout_messages import (
    describe_inner_data,
    describe_nested_names,
    describe_repeated_classes,
    describe_repeated_split,
    describe_shared_folders,
    describe_shared_in_split,
)
from finetune.data.layouts.split_names import find_split_families, parse_split_name
from finetune.errors import DataError
from finetune.types import Split


def check_class_folders(
    folder: FolderContents,
    split_of: Mapping[str, Split] | None = None,
    parents: Mapping[str, tuple[FolderContents, Split]] | None = None,
) -> None:
    """Check that class folders do not rather look like splits, nor hold splits.

    Args:
        folder: Folder of the class folders.
        split_of: Names of the split folders with their splits; None if there are none.
        parents: Folders of class folders in the split folders, with their splits, by their paths.

    Raises:
        DataError: They do.
    """
    present = folder.classes
    if len(present) < 2:
        return
    _check_repeated_classes(folder, split_of)
    nested = [child for child in present if child.classes]
    counts = Counter(name for child in nested for name in list_class_names(child))
    shared = {name for name, count in counts.items() if 2 * count >= len(nested) and count > 1}
    sharing = [child for child in nested if len(list_class_names(child) & shared) > 1]
    if len(sharing) > 1 and 2 * len(sharing) >= len(nested):
        names = [child.name for child in sharing]
        classes = _find_class_parent(sharing[0]).classes
        inner = [child.name for child in classes if child.name.casefold() in shared]
        if split_of is None:
            raise DataError(describe_shared_folders(folder.path, names, inner))
        chosen = {
            f"{place}/{names[0]}" if (parent.path / names[0]).is_dir() else place: split
            for place, (parent, split) in (parents or {}).items()
        }
        raise DataError(describe_shared_in_split(folder.path, names, inner, split_of, chosen))
    for child in present:
        for family in find_split_families(grandchild.name for grandchild in child.classes):
            if len(set(family.values())) > 1 and Split.TRAIN in family.values():
                others = [other.name for other in present if other is not child]
                raise DataError(describe_inner_data(child.path, sorted(family), others, split_of))


def check_unique_splits(
    folder: FolderContents, kept: Sequence[FolderContents], split_of: Mapping[str, Split]
) -> None:
    """Check that no two split folders are of the same split.

    Args:
        folder: Folder of the split folders.
        kept: Split folders.
        split_of: Split of each name.

    Raises:
        DataError: Two are.
    """
    name_of: dict[Split, str] = {}
    for child in kept:
        split = split_of[child.name]
        first = name_of.setdefault(split, child.name)
        if first != child.name:
            splits = {other.name: split_of[other.name] for other in kept}
            raise DataError(describe_repeated_split(folder.path, first, child.name, splits))


def check_separate_folders(folder: FolderContents, names: Sequence[str]) -> None:
    """Check that no named split folder is, or lies in, another one.

    Args:
        folder: Folder that the names are relative to.
        names: Names of the split folders.

    Raises:
        DataError: One does.
    """
    places = [(name, (folder.path / name).resolve()) for name in names]
    for position, (name, place) in enumerate(places):
        for other_position, (other, outer) in enumerate(places):
            if position != other_position and place.is_relative_to(outer):
                raise DataError(describe_nested_names(folder.path, other, name))


def list_class_names(folder: FolderContents) -> set[str]:
    """Return the names of class folders in a folder, or in its only folder of images, lower case.

    Args:
        folder: Folder that may be a split or a class.
    """
    return name_all(_find_class_parent(folder).classes)


def name_all(folders: Sequence[FolderContents]) -> set[str]:
    """Return the names of folders, in lower case."""
    return {folder.name.casefold() for folder in folders}


def _check_repeated_classes(
    folder: FolderContents, split_of: Mapping[str, Split] | None = None
) -> None:
    """Check that no class folder holds folders of the classes beside it.

    It counts as such with two of them if it has the name of a split, or else with all of them.

    Raises:
        DataError: One does.
    """
    plain = name_all([child for child in folder.classes if child.has_own_images])
    for child in folder.classes:
        inner = list_class_names(child)
        if len(inner) < 2:
            continue
        siblings = [other for other in folder.classes if other is not child]
        repeated = [other.name for other in siblings if other.name.casefold() in inner]
        is_copy = bool(plain) and plain <= inner and not child.has_own_images
        if len(repeated) > 1 and (is_copy or parse_split_name(child.name) is not None):
            raise DataError(describe_repeated_classes(folder.path, child.name, repeated, split_of))


def _find_class_parent(folder: FolderContents) -> FolderContents:
    """Return a folder, or the one inside of it which holds all of its class folders."""
    while len(folder.classes) == 1 and not folder.has_own_images and folder.classes[0].classes:
        (folder,) = folder.classes
    return folder
