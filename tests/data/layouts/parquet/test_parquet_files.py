"""Tests of which Parquet files are a dataset, and of files that cannot be read."""

import sys
from pathlib import Path

import pytest

from finetune.data.layouts.parquet.parquet_files import find_parquet_files, open_parquet
from finetune.data.scan import check_path, scan
from finetune.errors import DataError
from finetune.types import Split
from tests.support.helpers import write_images
from tests.support.parquet import encode_noise, write_hub_file

ROWS = [(encode_noise(number), None, number % 3) for number in range(20)]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"PAR1")
    return root


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"), {"train", "test"}),
        (
            ("data/train-00000-of-00001-ab12ab12ab12ab12.parquet", "data/dev.parquet"),
            {"train", "val"},
        ),
        (("train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"), {"train", "val"}),
        (("default/train/0000.parquet", "default/test/0000.parquet"), {"train", "test"}),
        (("flowers_train.parquet", "flowers_test.parquet"), {None}),
        (("part-0.parquet", "part-1.parquet"), {None}),
        (("0000.parquet",), {None}),
        (("train-0.parquet", "unsupervised-0.parquet"), {"train"}),
    ],
)
def test_names_of_files_give_splits(
    tmp_path: Path, names: tuple[str, ...], splits: set[str | None]
) -> None:
    files = find_parquet_files(touch(tmp_path, *names))
    assert files is not None
    assert {None if split is None else split.value for split in files.splits} == splits


def test_files_that_are_no_split_are_asked_about(tmp_path: Path) -> None:
    root = touch(tmp_path, "train-0.parquet", "test-0.parquet", "night-0.parquet")
    with pytest.raises(DataError, match=r"night, which is none .*'test=test,train=train'"):
        find_parquet_files(root)
    named = find_parquet_files(root, {"train": Split.TRAIN, "night": Split.TEST})
    assert named is not None
    assert dict(zip(named.names, named.splits, strict=True)) == {
        "night-0.parquet": Split.TEST,
        "train-0.parquet": Split.TRAIN,
    }
    assert named.notes == ("Passed over the Parquet files of test.",)


def test_several_datasets_in_one_folder_are_asked_about(tmp_path: Path) -> None:
    touch(tmp_path, "fine/train-0.parquet", "coarse/train-0.parquet")
    with pytest.raises(DataError, match=r"in 2 folders \(coarse, fine\).*Give one of the folders"):
        find_parquet_files(tmp_path)
    assert find_parquet_files(tmp_path / "fine") is not None


def test_folder_with_images_is_no_parquet_dataset(tmp_path: Path) -> None:
    root = write_images(touch(tmp_path, "metadata.parquet"), "a/1.png", "b/1.png")
    assert find_parquet_files(root) is None
    assert [entry.path for entry in scan(root).rejected] == ["metadata.parquet"]


def test_paths_without_a_file_are_named(tmp_path: Path) -> None:
    for name in ("a.parquet", "train-*.parquet"):
        with pytest.raises(DataError, match="does not exist"):
            check_path(tmp_path / name)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a \.csv or a \.parquet file is expected"):
        check_path(tmp_path / "a.txt")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def damage_pages(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(60) + content[64:])


def write_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")


def write_page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html></html>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train\.parquet is damaged or incomplete \(.+\)\. Get the file again"),
        (damage_pages, r"train\.parquet is damaged or incomplete \(.+\)\. Get the file again"),
        (write_pointer, r"is a Git LFS pointer: .* Run git lfs pull"),
        (write_page, r"is not a Parquet file: its content is web page \(HTML\)"),
        (lambda file: file.write_bytes(b""), r"train\.parquet is empty\."),
        (lambda file: file.write_bytes(b"abc"), r"is not a Parquet file\. Get the file again"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object, message: str
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    file = write_hub_file(tmp_path / "d/train.parquet", ROWS)
    damage(file)  # type: ignore[operator]
    for path in (file, tmp_path / "d"):
        with pytest.raises(DataError, match=message):
            scan(path)
    left = list((tmp_path / "cache").rglob("*.png"))
    assert not left, "a part of a file is not kept"


def test_missing_pyarrow_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_hub_file(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        pytest.raises(DataError, match=r"pip install 'finetune-vision\[parquet\]'"),
        open_parquet(file),
    ):
        pass
