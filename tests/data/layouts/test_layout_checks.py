"""Tests of layouts in which a split, a part or a copy of the data would be read as a class."""

from pathlib import Path

import pytest

from finetune.data.scan import scan
from finetune.errors import DataError
from finetune.types import Split
from tests.support.helpers import write_images

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def write_classes(root: Path, *folders: str, classes: str = "ants bees") -> Path:
    return write_images(
        root, *(f"{folder}/{name}/1.png" for folder in folders for name in classes.split())
    )


def list_classes(root: Path) -> set[tuple[str, Split | None]]:
    return {(sample.label, sample.split) for sample in scan(root).samples}


@pytest.mark.parametrize("name", ["test", "validation", "Test_Set", "test/test", "val/images"])
@pytest.mark.parametrize("wrapper", ["", "archive/"])
def test_scan_split_folder_beside_class_folders_asks(
    tmp_path: Path, name: str, wrapper: str
) -> None:
    write_classes(tmp_path, f"{wrapper}.", f"{wrapper}{name}")
    top = name.partition("/")[0]
    with pytest.raises(DataError, match=f"contains ants, bees and also '{top}'.*is it a split"):
        scan(tmp_path)
    labels = {sample.label for sample in scan(tmp_path / wrapper, splits="none").samples}
    assert labels == {"ants", "bees", top}


def test_scan_copy_of_the_class_folders_beside_them_asks(tmp_path: Path) -> None:
    write_classes(tmp_path, ".", "backup")
    with pytest.raises(DataError, match=r"also 'backup'.*if it is a copy, move it away"):
        scan(tmp_path)


@pytest.mark.parametrize(("inner", "held_out"), [("val", ""), ("test", "val"), ("copy", "val")])
def test_scan_split_folder_inside_a_split_folder_asks(
    tmp_path: Path, inner: str, held_out: str
) -> None:
    write_classes(tmp_path, "train", f"train/{inner}", *filter(None, [held_out]))
    message = f"train contains ants, bees and also '{inner}'.*Move '{inner}' out of train"
    with pytest.raises(DataError, match=message):
        scan(tmp_path)
    splits = {"train": TRAIN, "val": VAL} if held_out else {"train": TRAIN}
    named = scan(tmp_path, splits=splits).samples
    assert {s.label for s in named} == {"ants", "bees", inner}


@pytest.mark.parametrize(
    "folders",
    [
        ("Learn/Learn", "Check/Check"),
        ("Learn/images", "Check/images"),
        ("Check/data", "Learn/files"),
        ("Learn", "Check/inside/deeper"),
    ],
)
def test_scan_same_class_folders_in_wrappers_ask(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write_classes(tmp_path, *folders)
    with pytest.raises(DataError, match="Check and Learn both hold ants, bees: are they splits"):
        scan(tmp_path)


def test_scan_same_class_folders_beside_folders_without_any_ask(tmp_path: Path) -> None:
    write_classes(tmp_path, "Learn", "Check")
    write_images(tmp_path, "docs/1.png", "figures/2.png")
    with pytest.raises(DataError, match="Check and Learn both hold ants, bees"):
        scan(tmp_path)


def test_scan_parts_of_the_data_inside_split_folders_ask(tmp_path: Path) -> None:
    write_classes(tmp_path, *(f"{s}/{p}" for s in ("train", "val") for p in ("images", "masks")))
    write_classes(tmp_path, "test")
    with pytest.raises(DataError, match="images and masks both hold ants, bees: which") as error:
        scan(tmp_path)
    assert "data.splits='train/images=train,val/images=val,test=test'" in str(error.value)
    assert "are the classes, set data.splits='train=train,val=val,test=test'" in str(error.value)
    result = scan(tmp_path, splits={"train/images": TRAIN, "val/images": VAL})
    assert {(s.label, s.split) for s in result.samples} == {
        (label, split) for label in ("ants", "bees") for split in (TRAIN, VAL)
    }


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ("train/photos train/paintings", "val/photos", {"photos"}),
        ("train/images/data train/images/paintings", "val/images/data", {"data"}),
        ("train/photos train/paintings", "val/photos/a val/photos/b", {"photos"}),
        ("train/val train/other", "val/val", {"val"}),
        ("train/images/ants train/images/bees", "val/images val/masks", {"images", "masks"}),
        ("train/photos train/paintings", "val/photos/photos val/photos/paintings",
         {"photos", "paintings"}),
    ],
)  # fmt: skip
def test_scan_held_out_split_keeps_an_only_class_called_like_a_wrapper(
    tmp_path: Path, train: str, val: str, expected: set[str]
) -> None:
    write_images(tmp_path, *(f"{folder}/1.png" for folder in (*train.split(), *val.split())))
    classes = {folder.rpartition("/")[2] for folder in train.split()}
    assert list_classes(tmp_path) == {
        *((name, TRAIN) for name in classes),
        *((name, VAL) for name in expected),
    }


@pytest.mark.parametrize("file", [None, ".DS_Store", "1.psd"])
def test_scan_class_of_folders_beside_an_empty_class_is_no_wrapper(
    tmp_path: Path, file: str | None
) -> None:
    write_images(tmp_path, "ants/day/1.png", "ants/night/2.png")
    (tmp_path / "bees").mkdir()
    if file:
        (tmp_path / "bees" / file).touch()
    with pytest.raises(DataError, match=r"Class folder .*bees contains no image"):
        scan(tmp_path)
    assert {sample.label for sample in scan(tmp_path, allow_empty=True).samples} == {"ants"}


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("val", "val holds no image: fit draws a validation split from the training images."),
        ("test", "test holds no image: there is no test split."),
    ],
)
@pytest.mark.parametrize("inner", [".", "ants"])
def test_scan_split_folder_without_images_is_noted(
    tmp_path: Path, name: str, note: str, inner: str
) -> None:
    write_classes(tmp_path, "train")
    (tmp_path / name / inner).mkdir(parents=True)
    result = scan(tmp_path)
    assert {sample.split for sample in result.samples} == {TRAIN}
    assert result.notes == (note,)


def test_scan_unlabelled_folder_with_class_folders_is_rejected_with_a_true_reason(
    tmp_path: Path,
) -> None:
    write_classes(tmp_path, "train", "prediction", "unlabeled/unlabeled")
    reasons = {entry.path.partition("/")[0]: entry.reason for entry in scan(tmp_path).rejected}
    assert reasons == {
        name: f"not used, {name} is no split by its name (data.splits can name it)"
        for name in ("prediction", "unlabeled")
    }


@pytest.mark.parametrize(
    "splits",
    [
        {"data": TRAIN, "data/test": TEST},
        {"data/test": TEST, "data": TRAIN},
        {"data": TRAIN, "data/": TEST},
        {"data": TRAIN, "link/test": TEST},
        {".": TRAIN, "data/test": TEST},
    ],
)
def test_scan_named_splits_inside_each_other_raise_data_error(
    tmp_path: Path, splits: dict[str, Split]
) -> None:
    write_classes(tmp_path, "data", "data/test")
    (tmp_path / "link").symlink_to("data")
    with pytest.raises(DataError, match="its images would be in two splits"):
        scan(tmp_path, splits=splits)
