"""Every layout of folders and CSV that is read or refused."""

import unicodedata
from pathlib import Path

import pytest

from finetune.data.scan import has_split_folders, list_images, scan
from finetune.errors import DataError
from finetune.types import RejectedFile, Sample, Split
from tests.support.helpers import write_images

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
NFC, NFD = (unicodedata.normalize(form, "crème brûlée") for form in ("NFC", "NFD"))


def test_a_folder_of_class_folders_is_flat_and_searched_to_its_depth(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/b.png", "dog/a.png", "cat/deep/er/x.png")
    found = scan(tmp_path)
    assert found.root == tmp_path.resolve()
    assert found.rejected == ()
    assert list(found.samples) == [
        Sample("cat/deep/er/x.png", "cat"),
        Sample("dog/a.png", "dog"),
        Sample("dog/b.png", "dog"),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "VAL", "Validation"])
def test_split_folders_in_every_spelling(tmp_path: Path, val: str) -> None:
    write_images(tmp_path, "Train/cat/1.png", f"{val}/cat/2.png", "TEST/cat/3.png")
    assert {(s.path, s.label, s.split) for s in scan(tmp_path).samples} == {
        ("Train/cat/1.png", "cat", TRAIN),
        (f"{val}/cat/2.png", "cat", VAL),
        ("TEST/cat/3.png", "cat", TEST),
    }


def test_a_class_that_is_called_train_is_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, "bus/1.png", "train/2.png", "val/3.png")
    assert not has_split_folders(tmp_path)
    found = [(s.label, s.split) for s in scan(tmp_path).samples]
    assert found == [("bus", None), ("train", None), ("val", None)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/cat/1.png", "val/cat/2.png", "valid/cat/3.png"], "both 'val' and 'valid'"),
        (["train/cat/1.png", "Train/cat/2.png"], "both 'Train' and 'train'"),
        (["train/cat/1.png", "extra/cat/2.png"], "holds train and also 'extra'"),
        (["readme.txt.png"], r"holds no labelled image \(1 other files\)"),
    ],
)
def test_an_ambiguous_layout_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    write_images(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        scan(tmp_path)


@pytest.mark.parametrize("folder", ["dog", "train/dog"])
def test_an_empty_class_folder_is_an_error_that_names_it(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path, f"{folder}/../cat/1.png")
    (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=f"Class folder .*{folder} holds no image"):
        scan(tmp_path)


def test_an_empty_class_folder_is_fine_outside_train(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    (tmp_path / "val/dog").mkdir()
    assert [s.path for s in scan(tmp_path).samples if s.split is VAL] == ["val/cat/3.png"]


def test_missing_path_names_its_nearest_sibling_and_a_file_is_no_folder(photos: Path) -> None:
    with pytest.raises(DataError, match=r"photo does not exist\. Did you mean 'photos'\?"):
        scan(photos.parent / "photo")
    with pytest.raises(DataError, match="is a file, but a folder"):
        scan(photos / "cat/0.png")
    (photos.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no labelled image \(0 other files\)"):
        scan(photos.parent / "empty")


def test_hidden_and_system_files_are_passed_over_and_others_listed(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        *("cat/1.png", ".git/x/2.png", "__MACOSX/cat/3.png", "cat/.hidden/4.png"),
        *("cat/__MACOSX/5.png", "cat/._6.png", ".7.png", "loose.png"),
    )
    for name in ("cat/notes.txt", "cat/Thumbs.db", "cat/README", "cat/.DS_Store", "labels.csv"):
        (tmp_path / name).touch()
    found = scan(tmp_path)
    assert [s.path for s in found.samples] == ["cat/1.png"]
    assert set(found.rejected) == {
        RejectedFile("cat/notes.txt", "not an image format that is read (.txt)"),
        RejectedFile("cat/README", "no image suffix"),
        RejectedFile("loose.png", "lies in no class folder"),
        RejectedFile("labels.csv", "not an image format that is read (.csv)"),
    }


def test_loose_images_beside_split_and_class_folders_are_listed(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "train/b.png", "train/cat/c.png")
    reason = "lies in no class folder"
    assert scan(tmp_path).rejected == (
        RejectedFile("a.png", reason),
        RejectedFile("train/b.png", reason),
    )


def test_suffixes_count_in_any_case(tmp_path: Path) -> None:
    names = ["cat/1.PNG", "cat/2.Jpg", "cat/3.jPEG", "cat/4.TIFF", "cat/5.WebP"]
    write_images(tmp_path, *names)
    assert [s.path for s in scan(tmp_path).samples] == names


def test_composed_and_decomposed_unicode_are_one_class(tmp_path: Path) -> None:
    write_images(tmp_path, f"train/{NFC}/1.png", f"val/{NFD}/2.png", "train/猫 🐈/3.png")
    assert {(s.label, s.split) for s in scan(tmp_path).samples} == {
        (NFC, TRAIN),
        (NFC, VAL),
        ("猫 🐈", TRAIN),
    }


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    root = write_images(tmp_path / "root", "cat/1.png", "dog/sub/2.png")
    (root / "cat/loop").symlink_to(root, target_is_directory=True)
    (root / "dog/sub/up").symlink_to(root / "dog", target_is_directory=True)
    (root / "self").symlink_to(root, target_is_directory=True)
    (root / "above").symlink_to(tmp_path, target_is_directory=True)
    assert [s.path for s in scan(root).samples] == ["cat/1.png", "dog/sub/2.png"]


def test_links_to_the_outside_are_followed_once(tmp_path: Path) -> None:
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


def write_csv(file: Path, text: str) -> Path:
    file.write_bytes(text.encode())
    return file


def test_csv_with_bom_splits_groups_quotes_and_odd_columns(tmp_path: Path) -> None:
    text = (
        "\ufeff Split,PATH , label,group,note\r\n"
        f'Valid,"a, b.png",{NFD},g1,x\r\n'
        'train, ./sub/b.PNG ,"dog, brown",,\r\n'
        "TEST,.hidden.png,dog,,\r\n"
        "train,c.txt,dog,,\r\n"
    )
    found = scan(write_csv(tmp_path / "list.CSV", text))
    assert found.root == tmp_path.resolve()
    assert list(found.samples) == [
        Sample("a, b.png", NFC, VAL, "g1"),
        Sample("sub/b.PNG", "dog, brown", TRAIN),
        Sample(".hidden.png", "dog", TEST),
    ]
    assert found.rejected == (RejectedFile("c.txt", "not an image format that is read (.txt)"),)


def test_csv_paths_are_relative_to_it_unless_they_lie_outside(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "data"
    root.mkdir()
    outside = (tmp_path.resolve() / "far.png").as_posix()
    text = f"path,label\n{outside},cat\n{root}/x/in.png,dog\n"
    assert [s.path for s in scan(write_csv(root / "l.csv", text)).samples] == [outside, "x/in.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,cat\nb.png,cat\n./a.png,dog\n", r"lines 2 and 4: a\.png stands twice"),
        ("path,label\na.png,cat\n{root}/a.png,cat\n", r"lines 2 and 3: a\.png stands twice"),
        ("path,label,split\na.png,cat,trian\n", r"line 2: unknown split 'trian'.* mean 'train'"),
        ("path,class\na.png,cat\n", r"no column 'label' \(found: path, class\)"),
        ("file;label\n", "no column 'path'"),
        ("", r"no column 'path' \(found: none\)"),
        ("path,label\na.png\n", "line 2: path or label is empty"),
        ("path,label\n ,cat\n", "line 2: path or label is empty"),
        ("path,label\n", r"holds no labelled image \(0 other"),
    ],
)
def test_a_mistake_in_a_csv_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    text = text.replace("{root}", str(tmp_path.resolve()))
    with pytest.raises(DataError, match=message):
        scan(write_csv(tmp_path / "list.csv", text))


def test_a_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path,label\na.png,crème\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not a CSV in UTF-8"):
        scan(tmp_path / "list.csv")


def test_list_images_takes_a_file_or_everything_below_a_folder(photos: Path) -> None:
    (photos / "notes.txt").touch()
    assert list_images(photos / "cat/0.png") == ([photos / "cat/0.png"], [])
    images, rejected = list_images(photos)
    assert images == sorted(photos.rglob("*.png"))
    reason = "not an image format that is read (.txt)"
    assert rejected == [RejectedFile((photos / "notes.txt").as_posix(), reason)]
    with pytest.raises(DataError, match="does not exist"):
        list_images(photos / "gone")
    (photos / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no image \(0 other files\)"):
        list_images(photos / "none")
