"""Tests of scans of folders."""

import unicodedata
from pathlib import Path

import pytest

from finetune.data.images.decode import open_image
from finetune.data.scan import list_images, scan
from finetune.data.scan_result import ImageList
from finetune.errors import DataError
from finetune.types import RejectedFile, Sample, Split
from tests.support.helpers import write_images

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
NFC, NFD = (unicodedata.normalize(form, "crème brûlée") for form in ("NFC", "NFD"))


def test_scan_class_folders_collects_images_at_any_depth(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/b.png", "dog/a.png", "cat/deep/er/x.png")
    result = scan(tmp_path)
    assert result.root == tmp_path.resolve()
    assert result.rejected == ()
    assert list(result.samples) == [
        Sample("cat/deep/er/x.png", "cat"),
        Sample("dog/a.png", "dog"),
        Sample("dog/b.png", "dog"),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "VAL", "Validation"])
def test_scan_split_folders_accepts_every_spelling(tmp_path: Path, val: str) -> None:
    write_images(tmp_path, "Train/cat/1.png", f"{val}/cat/2.png", "TEST/cat/3.png")
    assert {(s.path, s.label, s.split) for s in scan(tmp_path).samples} == {
        ("Train/cat/1.png", "cat", TRAIN),
        (f"{val}/cat/2.png", "cat", VAL),
        ("TEST/cat/3.png", "cat", TEST),
    }


def test_scan_class_named_train_is_class(tmp_path: Path) -> None:
    write_images(tmp_path, "bus/1.png", "train/2.png", "val/3.png")
    result = [(s.label, s.split) for s in scan(tmp_path).samples]
    assert result == [("bus", None), ("train", None), ("val", None)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/cat/1.png", "val/cat/2.png", "valid/cat/3.png"],
            "two val splits, 'val' and 'valid'",
        ),
        (["train/cat/1.png", "Train/cat/2.png"], "two train splits, 'Train' and 'train'"),
        (["train/cat/1.png", "extra/cat/2.png"], "also 'extra'"),
        (["readme.txt.png"], r"image \(1 other file, the first readme\.txt\.png: not in a"),
    ],
)
def test_scan_ambiguous_layout_raises_data_error(
    tmp_path: Path, names: list[str], message: str
) -> None:
    write_images(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        scan(tmp_path)


@pytest.mark.parametrize("folder", ["dog", "train/dog"])
def test_scan_empty_class_folder_raises_data_error_with_its_name(
    tmp_path: Path, folder: str
) -> None:
    write_images(tmp_path, f"{folder}/../cat/1.png")
    (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=f"Class folder .*{folder} contains no image"):
        scan(tmp_path)


def test_scan_empty_class_folder_outside_train_is_accepted(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    (tmp_path / "val/dog").mkdir()
    assert [s.path for s in scan(tmp_path).samples if s.split is VAL] == ["val/cat/3.png"]


def test_scan_missing_path_or_file_raises_data_error_with_suggestion(photos: Path) -> None:
    with pytest.raises(DataError, match=r"photo does not exist\. Did you mean '\S*photos'\?"):
        scan(photos.parent / "photo")
    with pytest.raises(DataError, match=r"0\.png is a file"):
        scan(photos / "cat/0.png")
    (photos.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"no labelled image \(0 other files\)"):
        scan(photos.parent / "empty")


def test_scan_ignores_hidden_and_system_files_and_rejects_others(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        *("cat/1.png", ".git/x/2.png", "__MACOSX/cat/3.png", "cat/.hidden/4.png"),
        *("cat/__MACOSX/5.png", "cat/._6.png", ".7.png", "loose.png"),
    )
    for name in ("cat/notes.txt", "cat/Thumbs.db", "cat/README", "cat/.DS_Store", "labels.csv"):
        (tmp_path / name).touch()
    result = scan(tmp_path)
    assert [s.path for s in result.samples] == ["cat/1.png"]
    assert set(result.rejected) == {
        RejectedFile("cat/notes.txt", "unsupported image format (.txt)"),
        RejectedFile("cat/README", "no image suffix"),
        RejectedFile("loose.png", "not in a class folder"),
        RejectedFile("labels.csv", "unsupported image format (.csv)"),
    }


def test_scan_loose_images_beside_folders_are_rejected(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "train/b.png", "train/cat/c.png")
    reason = "not in a class folder"
    assert scan(tmp_path).rejected == (
        RejectedFile("a.png", reason),
        RejectedFile("train/b.png", reason),
    )


def test_scan_suffix_in_any_case_is_image(tmp_path: Path) -> None:
    names = ["cat/1.PNG", "cat/2.Jpg", "cat/3.jPEG", "cat/4.TIFF", "cat/5.WebP"]
    write_images(tmp_path, *names)
    assert [s.path for s in scan(tmp_path).samples] == names


def test_scan_composed_and_decomposed_unicode_is_one_class(tmp_path: Path) -> None:
    write_images(tmp_path, f"train/{NFC}/1.png", f"val/{NFD}/2.png", "train/猫 🐈/3.png")
    assert {(s.label, s.split) for s in scan(tmp_path).samples} == {
        (NFC, TRAIN),
        (NFC, VAL),
        ("猫 🐈", TRAIN),
    }


def test_scan_links_to_ancestors_are_not_followed(tmp_path: Path) -> None:
    root = write_images(tmp_path / "root", "cat/1.png", "dog/sub/2.png")
    (root / "cat/loop").symlink_to(root, target_is_directory=True)
    (root / "dog/sub/up").symlink_to(root / "dog", target_is_directory=True)
    (root / "self").symlink_to(root, target_is_directory=True)
    (root / "above").symlink_to(tmp_path, target_is_directory=True)
    assert [s.path for s in scan(root).samples] == ["cat/1.png", "dog/sub/2.png"]


def test_scan_links_to_themselves_are_rejected_as_files(tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", "cat/1.png", "dog/1.png")
    for link in ("self", "cat/again", "dog/loop.jpg"):
        (root / link).symlink_to(Path(link).name)
    result = scan(root)
    assert [s.path for s in result.samples] == ["cat/1.png", "dog/1.png", "dog/loop.jpg"]
    assert {r.path: r.reason for r in result.rejected} == {
        "self": "no image suffix",
        "cat/again": "no image suffix",
    }
    with pytest.raises(DataError, match="Too many levels of symbolic links"):
        open_image(root / "dog/loop.jpg")


def test_scan_links_to_outside_are_followed_once(tmp_path: Path) -> None:
    outside = write_images(tmp_path / "outside", "1.png", "deep/2.png")
    (outside / "again").symlink_to(outside, target_is_directory=True)
    root = write_images(tmp_path / "root", "cat/0.png")
    (root / "cat/linked").symlink_to(outside, target_is_directory=True)
    (root / "dog").symlink_to(outside, target_is_directory=True)
    (tmp_path / "alias").symlink_to(root, target_is_directory=True)
    names = ["0.png", "linked/1.png", "linked/deep/2.png"]
    expected = [f"cat/{name}" for name in names] + ["dog/1.png", "dog/deep/2.png"]
    for path in (root, tmp_path / "alias"):
        assert [s.path for s in scan(path).samples] == expected


def test_list_images_file_or_folder(photos: Path) -> None:
    (photos / "notes.txt").touch()
    assert list_images(photos / "cat/0.png") == ImageList([photos / "cat/0.png"])
    listed = list_images(photos)
    assert listed.files == sorted(photos.rglob("*.png"))
    reason = "unsupported image format (.txt)"
    assert listed.rejected == [RejectedFile((photos / "notes.txt").as_posix(), reason)]
    with pytest.raises(DataError, match="gone does not exist"):
        list_images(photos / "gone")
    (photos / "none").mkdir()
    with pytest.raises(DataError, match=r"no image \(0 other files\)"):
        list_images(photos / "none")


def test_list_images_of_a_csv_asks_for_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\na.png,cat\n")
    with pytest.raises(DataError, match=r"a\.csv is a CSV\. .*: give the folder of its images\.$"):
        list_images(tmp_path / "a.csv")
