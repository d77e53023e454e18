"""Tests of CSVs that hold images in base64."""

import base64
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from finetune.data.layouts.csv_files.csv_images import find_csv_root
from finetune.data.layouts.table_options import TableOptions
from finetune.data.scan import Scan, scan
from finetune.errors import DataError
from finetune.types import LabelFormat, RejectedFile, Split
from tests.support.helpers import create_noise
from tests.support.parquet import encode, encode_noise

IMAGES = [encode_noise(seed, kind) for seed, kind in enumerate(["PNG", "JPEG", "BMP", "PNG"])]
LABELS = ["cat", "dog", "cat", "dog"]


@pytest.fixture(autouse=True)
def _set_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def encode_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def write_rows(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def read_contents(result: Scan) -> list[bytes]:
    return [(result.root / sample.path).read_bytes() for sample in result.samples]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(encode_text, id="base64"),
        pytest.param(lambda image: f"data:image/png;base64,{encode_text(image)}", id="data_url"),
        pytest.param(lambda image: encode_text(image).rstrip("="), id="no_padding"),
        pytest.param(lambda image: base64.encodebytes(image).decode(), id="lines"),
        pytest.param(lambda image: base64.urlsafe_b64encode(image).decode(), id="base64url"),
        pytest.param(lambda image: str(base64.b64encode(image)), id="python_bytes"),
    ],
)
def test_images_are_those_that_were_encoded(tmp_path: Path, write: Callable[[bytes], str]) -> None:
    rows = [(write(image), label) for image, label in zip(IMAGES, LABELS, strict=True)]
    result = scan(write_rows(tmp_path / "photos.csv", ("Image", "label"), rows))
    assert read_contents(result) == IMAGES
    assert [sample.label for sample in result.samples] == LABELS
    suffixes = [Path(sample.path).suffix for sample in result.samples]
    assert suffixes == [".png", ".jpg", ".bmp", ".png"]
    assert any("base64 in the column 'image'" in note for note in result.notes)
    assert result.root.parent == tmp_path / "cache/pixels/csv"


def test_splits_groups_names_and_several_labels_are_read_beside_images(tmp_path: Path) -> None:
    header = ("file_name", "pixels", "split", "group", "labels")
    rows = [
        (f"p{row}/a.png", encode_text(image), split, f"g{row}", labels)
        for row, (image, split, labels) in enumerate(
            zip(IMAGES, ["train", "val", "train", "test"], ["a|b", "b", "", "a"], strict=True)
        )
    ]
    file = write_rows(tmp_path / "photos.csv", header, rows)
    result = scan(file)
    assert [s.labels for s in result.samples] == [("a", "b"), ("b",), (), ("a",)]
    assert [s.split for s in result.samples] == [Split.TRAIN, Split.VAL, Split.TRAIN, Split.TEST]
    assert [s.group for s in result.samples] == ["g0", "g1", "g2", "g3"]
    assert result.samples[0].path == "photos.csv/line00002_a.png"
    write_rows(file, header, [(*row[:3], "", row[4]) for row in rows])
    named = scan(file, tables=TableOptions(group_by=r"(p\d)/"))
    assert [s.group for s in named.samples] == ["p0", "p1", "p2", "p3"]


def test_image_names_come_from_no_other_column(tmp_path: Path) -> None:
    rows = [(label, encode_text(image)) for image, label in zip(IMAGES, LABELS, strict=True)]
    result = scan(write_rows(tmp_path / "l.csv", ("label", "image"), rows))
    assert result.samples[0].path == "l.csv/line00002.png"


def test_rows_without_an_image_are_rejected_with_their_line_and_reason(tmp_path: Path) -> None:
    texts = [encode_text(IMAGES[0]), "", "not@base64", encode_text(IMAGES[1])[:-3], "data:,x"]
    texts += ["=", encode_text(b"no image"), encode_text(IMAGES[3])]
    rows = [(text, LABELS[row % 2]) for row, text in enumerate(texts)]
    result = scan(write_rows(tmp_path / "l.csv", ("image", "label"), rows))
    assert list(result.rejected) == [
        RejectedFile("l.csv/line00003", "no image in this row"),
        RejectedFile("l.csv/line00004", "not base64 ('@' at character 4)"),
        RejectedFile("l.csv/line00005", result.rejected[2].reason),
        RejectedFile("l.csv/line00006", "data URL without ;base64"),
        RejectedFile("l.csv/line00007", "empty image"),
    ]
    assert result.rejected[2].reason.startswith("base64 is incomplete (")
    # what is no image by its content is rejected where files are opened, as in a folder
    names = [sample.path for sample in result.samples]
    assert names == ["l.csv/line00002.png", "l.csv/line00008.bin", "l.csv/line00009.png"]


def test_image_larger_than_the_limit_of_values_is_read(tmp_path: Path) -> None:
    large = encode(create_noise(seed=1, width=400, height=400), "BMP")
    rows = [(encode_text(image), label) for image, label in zip([large, *IMAGES], "abcde")]  # noqa: B905
    assert len(rows[0][0]) > 131_072
    result = scan(write_rows(tmp_path / "l.csv", ("image", "label"), rows))
    assert read_contents(result) == [large, *IMAGES]


def test_column_of_images_is_chosen_by_its_values(tmp_path: Path) -> None:
    text = encode_text(IMAGES[0])
    file = tmp_path / "l.csv"
    # without files the paths are names of the images; with files they are the images
    rows = [("a.png", text, "cat"), ("b.png", text, "dog")]
    write_rows(file, ("path", "image", "label"), rows)
    assert read_contents(scan(file)) == [IMAGES[0]] * 2
    (tmp_path / "a.png").write_bytes(IMAGES[1])
    result = scan(file)
    assert [sample.path for sample in result.samples] == ["a.png", "b.png"]
    assert any("data.image_column=image" in note for note in result.notes)
    named = scan(file, tables=TableOptions(image_column="image"))
    assert read_contents(named) == [IMAGES[0]] * 2
    # a column path of images, and a column image of paths
    write_rows(file, ("path", "label"), [(text, "cat")])
    assert read_contents(scan(file)) == [IMAGES[0]]
    write_rows(file, ("image", "label"), [("a.png", "cat")])
    result = scan(file)
    assert [sample.path for sample in result.samples] == ["a.png"]
    assert any("column 'image' names" in note for note in result.notes)


def test_several_columns_of_images_are_asked_about(tmp_path: Path) -> None:
    text = encode_text(IMAGES[0])
    file = write_rows(tmp_path / "l.csv", ("left", "right", "label"), [(text, text, "cat")])
    with pytest.raises(DataError, match=r"left, right.*data\.image_column=left"):
        scan(file)
    result = scan(file, tables=TableOptions(image_column="right"))
    assert len(result.samples) == 1


def test_class_without_an_image_names_its_row(tmp_path: Path) -> None:
    rows = [(encode_text(IMAGES[0]), "cat"), ("?", "dog")]
    file = write_rows(tmp_path / "l.csv", ("image", "label"), rows)
    with pytest.raises(DataError, match=r"no image of class 'dog'.*line 3.*not base64.*base64, or"):
        scan(file)


def test_root_of_a_stored_run_is_that_of_the_images(tmp_path: Path) -> None:
    rows = [(encode_text(image), label) for image, label in zip(IMAGES, LABELS, strict=True)]
    file = write_rows(tmp_path / "l.csv", ("image", "label"), rows)
    result = scan(file)
    assert find_csv_root(file, TableOptions()) == result.root
    write_rows(file, ("path", "label"), [("a.png", "cat")])
    assert find_csv_root(file, TableOptions()) == tmp_path
    assert find_csv_root(tmp_path / "missing.csv", TableOptions()) == tmp_path


def test_columns_of_labels_do_not_include_an_unused_path(tmp_path: Path) -> None:
    rows = [
        ("x.png", encode_text(IMAGES[0]), "1", "0"),
        ("y.png", encode_text(IMAGES[1]), "1", "1"),
    ]
    file = write_rows(tmp_path / "l.csv", ("path", "image", "cat", "dog"), rows)
    result = scan(file, tables=TableOptions(labels=LabelFormat("multi_label")))
    assert [sample.labels for sample in result.samples] == [("cat",), ("cat", "dog")]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(str, id="bytes"),
        pytest.param(lambda image: str({"bytes": image, "path": None}), id="struct"),
        pytest.param(bytes.hex, id="hex"),
        pytest.param(lambda image: " ".join(map(str, image)), id="numbers"),
    ],
)
@pytest.mark.parametrize("column", ["path", "image"])
def test_images_as_other_text_are_an_error_that_names_base64(
    tmp_path: Path, write: Callable[[bytes], str], column: str
) -> None:
    rows = [(write(image), label) for image, label in zip(IMAGES, LABELS, strict=True)]
    file = write_rows(tmp_path / "a.csv", (column, "label"), rows)
    with pytest.raises(DataError, match=r"line 2: .*Write image files in base64") as error:
        scan(file)
    assert len(str(error.value)) < len(str(file)) + 250


def test_long_values_are_shortened_in_messages(tmp_path: Path) -> None:
    rows = [("1 2 " * 50, "cat"), ("a.png", "dog")]
    with pytest.raises(DataError, match=r"no image of class 'cat': .*…: no image suffix") as error:
        scan(write_rows(tmp_path / "a.csv", ("path", "label"), rows))
    assert "1 2 " * 25 not in str(error.value)


def test_paths_in_a_column_of_base64_are_files(tmp_path: Path) -> None:
    (tmp_path / "far.png").write_bytes(IMAGES[1])
    rows = [(encode_text(IMAGES[0]), "cat"), ("far.png", "dog"), ("http://x.org/a.png", "dog")]
    result = scan(write_rows(tmp_path / "a.csv", ("image", "label"), rows))
    assert read_contents(result) == IMAGES[:2]
    assert [sample.label for sample in result.samples] == ["cat", "dog"]
    assert [entry.path for entry in result.rejected] == ["a.csv/line00004"]


def test_first_images_that_are_missing_are_left_out(tmp_path: Path) -> None:
    """The column is recognised by later records."""
    missing = [("", "cat")] * 120
    rows = [*missing, *((encode_text(IMAGES[n]), LABELS[n]) for n in range(2))]
    result = scan(write_rows(tmp_path / "a.csv", ("image", "label"), rows))
    assert (len(result.samples), len(result.rejected)) == (2, 120)


def test_error_names_the_columns_of_the_file(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.csv", ("image", "Ant"), [(encode_text(IMAGES[0]), "1")])
    with pytest.raises(DataError, match=r"no column 'label' \(found: image, Ant\)"):
        scan(file)
