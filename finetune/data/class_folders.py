"""Images of class folders, and of split folders that contain these."""

from collections.abc import Sequence
from pathlib import Path

from finetune.data.file_listing import (
    escape_path,
    find_rejection_reason,
    is_output_folder,
    walk_files,
)
from finetune.data.layouts.class_names import (
    describe_changed_names,
    normalize_class_name,
    quote_name,
)
from finetune.data.layouts.folder_contents import FolderContents
from finetune.data.layouts.folder_layout import FolderLayout, find_layout
from finetune.data.layouts.split_names import SplitSetting, parse_split_name
from finetune.data.scan_result import Scan
from finetune.errors import DataError
from finetune.types import RejectedFile, Sample, Split

_EFFECT_OF_EMPTY = {
    Split.TRAIN: ": there is no training split",
    Split.VAL: ": fit draws a validation split from the training images",
    Split.TEST: ": there is no test split",
}


def read_class_folders(root: Path, splits: SplitSetting, allow_empty: bool) -> Scan:
    """Return the images of class folders, with the splits that contain these.

    Raises:
        DataError: The layout is ambiguous, or a class folder has no image.
    """
    if is_output_folder(root):
        raise DataError(
            f"{root} was written by finetune and holds no images of a data set. Give the folder of "
            f"the images."
        )
    layout = find_layout(root, splits)
    rejected: list[RejectedFile] = []
    samples: list[Sample] = []
    empty: list[tuple[str, Split | None]] = []
    outputs: list[Path] = []
    folders_of: dict[str, list[str]] = {}
    for folder in _list_levels(root, layout):
        _reject_loose_files(folder, root, rejected)
    for parent, split in layout.class_parents:
        for class_folder in (child.path for child in parent.children):
            label = normalize_class_name(class_folder.name)
            if not label:
                raise DataError(
                    f"The name of class folder {quote_name(class_folder.name)} in {parent.path} "
                    f"has no visible character. Rename the folder."
                )
            found = _collect_samples(class_folder, root, label, split, rejected, outputs)
            if not found and split in (None, Split.TRAIN):
                if not allow_empty:
                    raise DataError(
                        f"Class folder {class_folder} contains no image. Add images, or move the "
                        f"folder out of the data."
                    )
                empty.append((label, split))
            samples += found
            folders_of.setdefault(label, []).append(class_folder.name)
    for folder in layout.unlabelled:
        rejected += _reject_unlabelled_images(folder, root, outputs)
    notes = [*layout.notes, *_describe_empty_splits(root, layout, samples)]
    notes += describe_changed_names(folders_of, noun="class folder")
    if outputs:
        names = sorted(path.relative_to(root).as_posix() for path in outputs)
        notes.append(f"Passed over {', '.join(names)}, written by finetune.")
    parents = [parent.path.relative_to(root).as_posix() for parent, _ in layout.class_parents]
    return Scan(
        root,
        tuple(samples),
        tuple(rejected),
        tuple(empty),
        tuple(notes),
        tuple(parent for parent in parents if parent != "."),
    )


def _list_levels(root: Path, layout: FolderLayout) -> list[Path]:
    """Return the folders from the root to those of the class folders, each once."""
    levels = [root]
    for parent, _ in layout.class_parents:
        inner = [parent.path, *parent.path.parents]
        levels += reversed([path for path in inner if path not in levels and root in path.parents])
    return levels


def _describe_empty_splits(
    root: Path, layout: FolderLayout, samples: Sequence[Sample]
) -> list[str]:
    """Return a line for each split folder without images that says what follows."""
    filled = {sample.split for sample in samples}
    notes = []
    for parent, split in layout.class_parents:
        if split is None or parent.has_images:
            continue
        name = parent.path.relative_to(root).as_posix()
        effect = "" if split in filled else _EFFECT_OF_EMPTY[split]
        notes.append(f"{name} holds no image{effect}.")
    return notes


def _collect_samples(
    folder: Path,
    root: Path,
    label: str,
    split: Split | None,
    rejected: list[RejectedFile],
    outputs: list[Path],
) -> list[Sample]:
    """Return the images of a class folder and append its other files to ``rejected``."""
    samples = []
    for file in walk_files(folder, outputs=outputs):
        relative = file.relative_to(root)
        reason = find_rejection_reason(file)
        if reason is None:
            samples.append(Sample(relative.as_posix(), label, split))
        elif reason:
            rejected.append(RejectedFile(escape_path(relative), reason))
    return samples


def _reject_unlabelled_images(folder: Path, root: Path, outputs: list[Path]) -> list[RejectedFile]:
    """Return the images of a folder beside split folders, which are not used."""
    name = folder.relative_to(root).as_posix()
    if FolderContents(folder).pass_through(parse_split_name(folder.name)).classes:
        reason = f"not used, {name} is no split by its name (data.splits can name it)"
    else:
        reason = f"no label, {name} has no class folders"
    images = _collect_samples(folder, root, "", None, [], outputs)
    return [RejectedFile(escape_path(Path(image.path)), reason) for image in images]


def _reject_loose_files(folder: Path, root: Path, rejected: list[RejectedFile]) -> None:
    """Append the files beside the class folders to ``rejected``; images there have no label."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() or (reason := find_rejection_reason(entry)) == "":
            continue
        path = escape_path(entry.relative_to(root))
        rejected.append(RejectedFile(path, reason or "not in a class folder"))
