"""Tests of CSVs of labelled images."""

import unicodedata
from pathlib import Path

import pytest

from finetune.data.scan import scan
from finetune.errors import DataError
from finetune.types import RejectedFile, Sample, Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
NFC, NFD = (unicodedata.normalize(form, "crème brûlée") for form in ("NFC", "NFD"))


def write_csv(file: Path, text: str) -> Path:
    file.write_bytes(text.encode())
    return file


def test_scan_csv_with_bom_splits_groups_quotes_and_odd_columns(tmp_path: Path) -> None:
    text = (
        "\ufeff Split,PATH , label,group,note\r\n"
        f'Valid,"a, b.png",{NFD},g1,x\r\n'
        'train, ./sub/b.PNG ,"dog, brown",,\r\n'
        "TEST,.hidden.png,dog,,\r\n"
        "train,c.txt,dog,,\r\n"
    )
    result = scan(write_csv(tmp_path / "list.CSV", text))
    assert result.root == tmp_path.resolve()
    assert list(result.samples) == [
        Sample("a, b.png", NFC, VAL, "g1"),
        Sample("sub/b.PNG", "dog, brown", TRAIN),
        Sample(".hidden.png", "dog", TEST),
    ]
    assert result.rejected == (RejectedFile("c.txt", "unsupported image format (.txt)"),)


def test_scan_csv_paths_are_relative_unless_outside(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "data"
    root.mkdir()
    outside = (tmp_path.resolve() / "far.png").as_posix()
    text = f"path,label\n{outside},cat\n{root}/x/in.png,dog\n"
    assert [s.path for s in scan(write_csv(root / "l.csv", text)).samples] == [outside, "x/in.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,cat\nb.png,cat\n./a.png,dog\n", r"lines 2 and 4: .*a\.png"),
        ("path,label\na.png,cat\n{root}/a.png,cat\n", r"lines 2 and 3: .*a\.png"),
        ("path,label,split\na.png,cat,trian\n", r"line 2: .*'trian'.*'train'"),
        ("path,class\na.png,cat\n", r"no column 'label' \(found: path, class\)"),
        ("file;label\n", "no column 'path'"),
        ("", r"no column 'path' \(found: none\)"),
        ("path,label\na.png\n", "line 2: path or label is empty"),
        ("path,label\n ,cat\n", "line 2: path or label is empty"),
        ("path,label\n", r"no labelled image \(0 other"),
    ],
)
def test_scan_csv_mistake_raises_data_error_with_line(
    tmp_path: Path, text: str, message: str
) -> None:
    text = text.replace("{root}", str(tmp_path.resolve()))
    with pytest.raises(DataError, match=message):
        scan(write_csv(tmp_path / "list.csv", text))


def test_scan_csv_in_other_encoding_raises_data_error(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path,label\na.png,crème\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list\.csv .*UTF-8"):
        scan(tmp_path / "list.csv")
