"""Layout of a folder: class folders, or split folders of class folders, also under other names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.layouts.folder_contents import FolderContents
from finetune.data.layouts.layout_checks import (
    check_class_folders,
    check_separate_folders,
    check_unique_splits,
    list_class_names,
    name_all,
)
from finetune.data.layouts.layout_messages import (
    describe_doubtful_train,
    describe_foreign_folder,
    describe_missing_class_folders,
    describe_several_families,
    join_names,
)
from finetune.data.layouts.split_names import (
    CLASSIC_NAMES,
    SplitSetting,
    find_split_families,
    is_unlabelled_name,
)
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import Split


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """Location of the class folders below a data folder.

    Attributes:
        class_parents: Folders whose sub-folders are class folders, with their splits.
        unlabelled: Folders of images beside split folders, which have no class folders.
        notes: Lines that say what was recognised or passed over.
    """

    class_parents: tuple[tuple[FolderContents, Split | None], ...]
    unlabelled: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def find_layout(root: Path, splits: SplitSetting = "auto") -> FolderLayout:
    """Return where the class folders of a data folder are, and of which split.

    Split folders are recognised by plain names, and inside of an only folder of images.

    Args:
        root: Data folder.
        splits: "auto" recognises split folders by their names, "none" takes all sub-folders of the
            root as class folders, and a mapping gives the splits of sub-folders by their names.

    Raises:
        DataError: The layout is ambiguous, or named folders are missing; the message says how to
            name the split folders.
    """
    folder = FolderContents(root)
    notes = _note_outputs(folder, root)
    if splits == "none":
        return FolderLayout(((folder, None),), notes=tuple(notes))
    while True:
        layout = (
            _recognize_split_folders(folder, root)
            if isinstance(splits, str)
            else _find_named_folders(folder, root, splits)
        )
        is_named = not isinstance(splits, str)
        inner = None if layout is not None else _find_wrapped_folder(folder, is_named=is_named)
        if inner is None:
            break
        inside = inner.path.relative_to(root).as_posix()
        others = [child.name for child in folder.children if child is not inner]
        rest = f"; {join_names(others)} beside it {_hold(others)} none" if others else ""
        notes.append(f"Reading {inside}, the only folder with images in {folder.name}{rest}.")
        folder = inner
        notes += _note_outputs(folder, root)
    if layout is None:
        check_class_folders(folder)
        layout = FolderLayout(((folder, None),))
    inner_notes = [
        line
        for parent, split in layout.class_parents
        if split is not None
        for line in _note_outputs(parent, root)
    ]
    return replace(layout, notes=(*notes, *layout.notes, *inner_notes))


def _recognize_split_folders(folder: FolderContents, root: Path) -> FolderLayout | None:
    """Return the split folders among sub-folders; None if these are classes.

    Raises:
        DataError: Split folders have no class folders, or stand beside other folders of images.
    """
    families = find_split_families(child.name for child in folder.children)
    if not families:
        return None
    if len(families) > 1:
        raise DataError(describe_several_families(folder.path, families))
    split_of = families[0]
    named = [child for child in folder.classes if child.name in split_of]
    rest = [child for child in folder.classes if child.name not in split_of]
    unlabelled = [child for child in rest if is_unlabelled_name(child.name)]
    others = [child for child in rest if child not in unlabelled]
    parents = _find_class_parents(named, [split_of[child.name] for child in named])
    flat = [child for child in named if not parents[child].classes]
    if len(flat) == len(named):
        if named and not others:
            names = sorted((c.name for c in named), key=lambda n: list(Split).index(split_of[n]))
            raise DataError(describe_missing_class_folders(folder.path, names, split_of))
        return None
    if others:
        if not _is_split_beside(folder, parents, flat, others, split_of):
            return None
        unlabelled += others
    for child in flat:
        if split_of[child.name] is Split.TRAIN:
            raise DataError(describe_missing_class_folders(folder.path, [child.name], split_of))
    unlabelled += flat
    # split folders without any image, too: their class folders are reported as empty
    kept = [c for c in folder.children if c.name in split_of and c not in unlabelled]
    check_unique_splits(folder, kept, split_of)
    _check_inner_classes(folder, {c: parents[c] for c in kept if c in parents}, split_of)
    return _build_layout(folder, root, kept, split_of, unlabelled)


def _check_inner_classes(
    folder: FolderContents,
    parents: Mapping[FolderContents, FolderContents],
    split_of: Mapping[str, Split],
) -> None:
    """Check the class folders in split folders.

    Raises:
        DataError: They look like splits, or hold these.
    """
    splits = {child.name: split_of[child.name] for child in parents}
    places = {
        parent.path.relative_to(folder.path).as_posix(): (parent, split_of[child.name])
        for child, parent in parents.items()
    }
    for parent in parents.values():
        check_class_folders(parent, splits, places)


def _is_split_beside(
    folder: FolderContents,
    parents: Mapping[FolderContents, FolderContents],
    flat: Sequence[FolderContents],
    others: Sequence[FolderContents],
    split_of: Mapping[str, Split],
) -> bool:
    """Return whether a train folder beside other folders of images is a split and not a class.

    Args:
        folder: Folder that holds all of them.
        parents: Folders with names of splits, with the folders of their class folders.
        flat: Those of them without class folders.
        others: Folders with other names.
        split_of: Split of each name.

    Raises:
        DataError: That cannot be told, or the others have class folders, too.
    """
    train = next((c for c in parents if c not in flat and split_of[c.name] is Split.TRAIN), None)
    if train is None:
        return False
    classes = parents[train].classes
    nested = [other for other in others if other.classes and not other.has_own_images]
    has_several = len({split_of[child.name] for child in parents}) > 1
    shared = [other for other in nested if list_class_names(other) & name_all(classes)]
    if shared or (has_several and nested):
        foreign = (shared or nested)[0]
        splits = {child.name: split_of[child.name] for child in parents}
        raise DataError(describe_foreign_folder(folder.path, foreign.name, splits))
    if has_several:
        return True
    if len(nested) == len(others) and not train.has_own_images:
        return False
    inner = [child.name for child in classes]
    raise DataError(
        describe_doubtful_train(folder.path, train.name, inner, [other.name for other in others])
    )


def _find_named_folders(
    folder: FolderContents, root: Path, splits: Mapping[str, Split]
) -> FolderLayout | None:
    """Return the split folders of the given names; None if they are in an inner folder.

    Raises:
        DataError: Some are missing, or one has no class folders.
    """
    split_of: dict[str, Split] = {}
    found: list[str] = []
    missing = []
    for name, split in splits.items():
        same = [c.name for c in folder.children if c.name.casefold() == name.casefold()]
        inside = Path(name)
        if (folder.path / inside).is_dir() and not inside.is_absolute() and ".." not in name:
            found.append(inside.as_posix())
        elif len(same) == 1:
            found.append(same[0])
        else:
            missing.append(name)
            continue
        split_of[found[-1]] = split
    if missing:
        if not split_of and _find_wrapped_folder(folder, is_named=True) is not None:
            return None
        known = [child.name for child in folder.children if child.name not in split_of]
        raise DataError(
            f"data.splits names '{missing[0]}', but {folder.path} has no such folder."
            f"{suggest_name(missing[0], known)}"
        )
    check_separate_folders(folder, found)
    kept = [FolderContents(folder.path / name) for name in split_of]
    parents = _find_class_parents(kept, list(split_of.values()))
    for name, child in zip(split_of, kept, strict=True):
        if not parents[child].children:
            raise DataError(describe_missing_class_folders(folder.path, [name], split_of))
    tops = {name.partition("/")[0] for name in split_of}
    others = [child.name for child in folder.classes if child.name not in tops]
    layout = _build_layout(folder, root, kept, split_of, [])
    if not others:
        return layout
    note = f"Passed over {join_names(others)}, which data.splits does not name."
    return replace(layout, notes=(*layout.notes, note))


def _build_layout(
    folder: FolderContents,
    root: Path,
    kept: Sequence[FolderContents],
    split_of: Mapping[str, Split],
    unlabelled: Sequence[FolderContents],
) -> FolderLayout:
    """Return the layout of split folders, with a note if one has an unusual name or place."""
    parents = []
    is_usual = True
    splits = [split_of[child.path.relative_to(folder.path).as_posix()] for child in kept]
    parent_of = _find_class_parents(kept, splits)
    for child, split in zip(kept, splits, strict=True):
        parents.append((parent_of[child], split))
        is_usual &= child.name.casefold() in CLASSIC_NAMES and parents[-1][0].path == child.path
    notes = []
    if not is_usual:
        ordered = sorted(parents, key=lambda item: list(Split).index(item[1]))
        shown = (f"{parent.path.relative_to(root)} is {split.value}" for parent, split in ordered)
        notes.append(f"Split folders: {', '.join(shown)}.")
    used = {child.path for child in (*kept, *unlabelled)}
    empty = [c.name for c in folder.children if c.path not in used and not c.has_images]
    if empty:
        notes.append(f"Passed over {join_names(empty)}, which {_hold(empty)} no images.")
    return FolderLayout(tuple(parents), tuple(child.path for child in unlabelled), tuple(notes))


def _find_class_parents(
    folders: Sequence[FolderContents], splits: Sequence[Split]
) -> dict[FolderContents, FolderContents]:
    """Return the folder of the class folders for each split folder.

    A folder called images or data is passed through unless the training split has such a class.
    """
    pairs = list(zip(folders, splits, strict=True))
    trained = (folder.pass_through(s).classes for folder, s in pairs if s is Split.TRAIN)
    names = {name for classes in trained if len(classes) > 1 for name in name_all(classes)}
    return {
        folder: folder.pass_through(split, () if split is Split.TRAIN else names)
        for folder, split in pairs
    }


def _find_wrapped_folder(
    folder: FolderContents, *, is_named: bool = False
) -> FolderContents | None:
    """Return the only sub-folder with images if it holds the data set rather than a class.

    Folders beside it hold labels or the like: one without files may be a class without images,
    unless the split folders are named.
    """
    if len(folder.classes) != 1:
        return None
    (child,) = folder.classes
    if child.has_own_images or not child.classes:
        return None
    if find_split_families(grandchild.name for grandchild in child.classes):
        return child
    others = [other for other in folder.children if other is not child]
    if not is_named and not all(other.has_other_files for other in others):
        return None
    is_data = len(child.classes) > 1 or _find_wrapped_folder(child, is_named=True) is not None
    return child if is_data else None


def _note_outputs(folder: FolderContents, root: Path) -> list[str]:
    """Return a line that names the folders of finetune which are passed over, if any."""
    names = [path.relative_to(root).as_posix() for path in folder.outputs]
    return [f"Passed over {join_names(names)}, written by finetune."] if names else []


def _hold(names: Sequence[str]) -> str:
    return "holds" if len(names) == 1 else "hold"
