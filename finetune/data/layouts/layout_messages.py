"""Messages about the layout of a folder: the question that it raises, and how to answer it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.data.layouts.split_names import find_split_families
from finetune.types import Split

_AS_CLASSES = "data.splits=none"
_IN_EVALUATE = "(finetune evaluate: --splits)"
_MAX_NAMES = 5


def describe_missing_class_folders(
    folder: Path, names: Sequence[str], split_of: Mapping[str, Split]
) -> str:
    """Return that split folders hold images and no class folders, and what is expected.

    Args:
        folder: Folder of the split folders.
        names: Names of those without class folders.
        split_of: Split of each name.
    """
    is_one = len(names) == 1
    splits = join_names(list(dict.fromkeys(split_of[name].value for name in names)))
    return (
        f"{join_names(names)} in {folder} {'holds' if is_one else 'hold'} images, but no class "
        f"folders. Expected {join_names([f'{name}/<class>/<image>' for name in names])}, or a CSV "
        f"of path,label,split with {splits} in the column split. If {join_names(names)} "
        f"{'is a class' if is_one else 'are the classes'}, set {_AS_CLASSES} {_IN_EVALUATE}."
    )


def describe_shared_folders(folder: Path, names: Sequence[str], shared: Sequence[str]) -> str:
    """Return the question whether folders with the same sub-folders are splits.

    Args:
        folder: Folder of these folders.
        names: Their names, at least two.
        shared: Names of the sub-folders.
    """
    holders = f"{join_names(names)} {'both' if len(names) == 2 else 'all'} hold"
    found = f"{folder}: {holders} {_list_names(shared)}"
    as_classes = f"If {join_names(names)} are the classes, set {_AS_CLASSES}"
    families = find_split_families(shared)
    if any(Split.TRAIN in family.values() for family in families):
        return (
            f"{found}, which are names of splits, in folders of classes. Expected "
            f"{shared[0]}/{names[0]}/<image>, or a CSV of path,label,split. {as_classes}: the "
            f"splits are then drawn anew {_IN_EVALUATE}."
        )
    return (
        f"{found}: are they splits? If so, say which is which, as in "
        f"{format_setting(_guess_splits(names))}. {as_classes} {_IN_EVALUATE}."
    )


def describe_shared_in_split(
    folder: Path,
    names: Sequence[str],
    shared: Sequence[str],
    split_of: Mapping[str, Split],
    chosen: Mapping[str, Split],
) -> str:
    """Return the question which of several folders in a split folder holds the class folders.

    Args:
        folder: Folder of these folders.
        names: Their names, at least two.
        shared: Names of their sub-folders.
        split_of: Names of the split folders with their splits.
        chosen: Paths of the folders with their splits if the first of the names is the answer.
    """
    return (
        f"{folder}: {join_names(names)} {'both' if len(names) == 2 else 'all'} hold "
        f"{_list_names(shared)}: which holds the class folders? If {names[0]} does, set "
        f"{format_setting(chosen)}. If {join_names(names)} are the classes, set "
        f"{format_setting(split_of)} {_IN_EVALUATE}."
    )


def describe_repeated_classes(
    folder: Path, name: str, repeated: Sequence[str], split_of: Mapping[str, Split] | None
) -> str:
    """Return that a folder beside class folders holds folders of the same names.

    Args:
        folder: Folder of the class folders.
        name: Name of the folder that holds the others again.
        repeated: Names of the folders beside it that it holds, too.
        split_of: Names of the split folders with their splits; None if there are none.
    """
    found = f"{folder} contains {_list_names(repeated)} and also '{name}', which holds them again"
    if split_of is not None:
        return (
            f"{found}. Move '{name}' out of {folder.name}, beside it if it is a split. If '{name}' "
            f"is a class, set {format_setting(split_of)} {_IN_EVALUATE}."
        )
    return (
        f"{found}: is it a split? If so, move the class folders beside it into {folder / 'train'}; "
        f"if it is a copy, move it away. If '{name}' is a class, set {_AS_CLASSES} {_IN_EVALUATE}."
    )


def describe_nested_names(folder: Path, outer: str, inner: str) -> str:
    """Return that of two named split folders one lies in the other, or that they are the same.

    Args:
        folder: Folder that the names are relative to.
        outer: Name of the outer folder.
        inner: Name of the inner folder.
    """
    return (
        f"data.splits names '{outer}' and '{inner}', but in {folder} the second is a part of the "
        f"first: its images would be in two splits. Name folders that do not contain each other "
        f"{_IN_EVALUATE}."
    )


def describe_foreign_folder(folder: Path, name: str, split_of: Mapping[str, Split]) -> str:
    """Return that a folder beside split folders is none.

    Args:
        folder: Folder of the split folders.
        name: Name of the other folder.
        split_of: Names of the split folders with their splits, one of them train.
    """
    train = next(name for name, split in split_of.items() if split is Split.TRAIN)
    return (
        f"{folder} contains split folders and also '{name}', which is not a split. Move it away, "
        f"or into {train} as a class folder, or name the split folders, as in "
        f"{format_setting(split_of)}, to pass over the others {_IN_EVALUATE}."
    )


def describe_doubtful_train(
    folder: Path, train: str, inner: Sequence[str], others: Sequence[str]
) -> str:
    """Return the question whether a folder called train is a split or a class.

    Args:
        folder: Folder that holds it.
        train: Its name.
        inner: Names of its sub-folders.
        others: Names of the folders beside it.
    """
    return (
        f"{folder} contains {train}, which holds {_list_names(inner)}, and {join_names(others)} "
        f"beside it. If {train} is a split, set {format_setting({train: Split.TRAIN})}; if it is a "
        f"class, set {_AS_CLASSES} {_IN_EVALUATE}."
    )


def describe_several_families(folder: Path, families: Sequence[Mapping[str, Split]]) -> str:
    """Return that a folder contains several sets of split folders."""
    names = [name for family in families for name in sorted(family)]
    return (
        f"{folder} contains several sets of split folders: {_list_names(names)}. Name those to "
        f"use, as in {format_setting(families[0])}; if they are the classes, set {_AS_CLASSES} "
        f"{_IN_EVALUATE}."
    )


def describe_repeated_split(
    folder: Path, first: str, second: str, split_of: Mapping[str, Split]
) -> str:
    """Return that two folders have names of the same split.

    Args:
        folder: Folder of the split folders.
        first: Name of one of them.
        second: Name of another of the same split.
        split_of: Names of all split folders with their splits.
    """
    used: dict[Split, str] = {split_of[first]: first}
    for name, split in split_of.items():
        used.setdefault(split, name)
    return (
        f"{folder} contains two {split_of[first].value} splits, '{first}' and '{second}'. Keep "
        f"one, or name all split folders to use, as in "
        f"{format_setting({name: split for split, name in used.items()})} {_IN_EVALUATE}."
    )


def describe_inner_data(
    folder: Path,
    inner: Sequence[str],
    others: Sequence[str],
    split_of: Mapping[str, Split] | None = None,
) -> str:
    """Return that one of several folders holds split folders.

    Args:
        folder: That folder.
        inner: Names of its split folders.
        others: Names of the folders beside it.
        split_of: Names of the split folders that these folders are in, with their splits, if any.
    """
    hold = "holds" if len(others) == 1 else "hold"
    as_classes = _AS_CLASSES if split_of is None else format_setting(split_of)
    return (
        f"{folder} holds the split folders {join_names(inner)}, and {join_names(others)} beside it "
        f"{hold} images, too. Give the folder that holds the data, such as {folder}, or, if these "
        f"are the classes, set {as_classes} {_IN_EVALUATE}."
    )


def format_setting(split_of: Mapping[str, Split]) -> str:
    """Return the setting that names split folders, as it is typed."""
    ordered = sorted(split_of.items(), key=lambda item: list(Split).index(item[1]))
    value = ",".join(f"{name}={split.value}" for name, split in ordered)
    return f"data.splits={shlex.quote(value)}" if "'" in value else f"data.splits='{value}'"


def join_names(names: Sequence[str]) -> str:
    """Return names with commas and a final "and"; at most five of them."""
    if len(names) > _MAX_NAMES:
        return f"{', '.join(names[:_MAX_NAMES])} and {len(names) - _MAX_NAMES} more"
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _guess_splits(names: Sequence[str]) -> dict[str, Split]:
    """Return a split for each of at most three names, by a part of the name or their order."""
    free = [Split.TRAIN, Split.TEST, Split.VAL]
    guessed: dict[str, Split] = {}
    for name in names:
        part = next((split for split in free if split.value in name.casefold()), None)
        if part is not None:
            guessed[name] = part
            free.remove(part)
    for name in names:
        if name not in guessed and free:
            guessed[name] = free.pop(0)
    return guessed
