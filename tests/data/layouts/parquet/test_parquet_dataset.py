"""Tests of labelled images in Parquet files."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune.data.layouts.table_options import TableOptions
from finetune.data.scan import Scan, list_images, scan
from finetune.data.streams.open_stream import open_stream
from finetune.errors import DataError
from finetune.types import LabelFormat, Split
from tests.support.helpers import RecordingReporter, write_images
from tests.support.parquet import CLASSES, IMAGE_TYPE, encode_noise, write_hub_file, write_table

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
TWO = (b"0", b"1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def get_labels(scanned: Scan) -> list[str]:
    return [sample.label for sample in scanned.samples]


def make_images(count: int) -> list[dict[str, Any]]:
    return [{"bytes": encode_noise(number), "path": f"{number}.png"} for number in range(count)]


def write_strings(file: Path, images: pa.Array, labels: Sequence[Any], **further: Any) -> Path:
    return write_table(file, {"image": images, "label": pa.array(labels), **further})


def test_hub_folder_gives_bytes_labels_and_splits(tmp_path: Path) -> None:
    """Images are those of the rows, byte for byte, in the order of files and rows."""
    root = tmp_path / "hub"
    rows = [(encode_noise(n), f"a/b{n}.png", n % 3) for n in range(12)]
    write_hub_file(root / "data/train-00000-of-00002.parquet", rows[:7])
    write_hub_file(root / "data/train-00001-of-00002.parquet", rows[7:])
    write_hub_file(root / "data/validation-00000-of-00001.parquet", [(encode_noise(90), None, 2)])
    write_hub_file(
        root / "data/test-00000-of-00001-0123456789abcdef.parquet", [(encode_noise(91), "t", 0)]
    )
    (root / "README.md").write_text("---")
    result = scan(root)
    by_split = {split: [s for s in result.samples if s.split is split] for split in Split}
    assert [(result.root / s.path).read_bytes() for s in by_split[TRAIN]] == [r[0] for r in rows]
    assert [s.label for s in by_split[TRAIN]] == ["ant", "bee", "cow"] * 4
    assert [s.label for s in by_split[VAL]] == ["cow"]
    assert [s.label for s in by_split[TEST]] == ["ant"]
    assert by_split[TRAIN][8].path == "data/train-00001-of-00002.parquet/row00001_b8.png"
    assert by_split[VAL][0].path == "data/validation-00000-of-00001.parquet/row00000.png"
    assert (result.rejected, result.empty_classes) == ((), ())


@pytest.mark.parametrize("pattern", ["data/train-*.parquet", "d*/train-0000?-of-00002.parquet"])
def test_pattern_names_some_files(tmp_path: Path, pattern: str) -> None:
    for part in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        rows = [(encode_noise(n), None, n) for n in range(3)]
        write_hub_file(tmp_path / f"data/{part}.parquet", rows)
    assert [sample.split for sample in scan(tmp_path / pattern).samples] == [TRAIN] * 6


def test_single_file_has_the_splits_of_its_column_only(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    rows = [(encode_noise(n), None, n) for n in range(3)]
    write_hub_file(file, rows)
    assert [sample.split for sample in scan(file).samples] == [None] * 3
    write_hub_file(file, rows, split=["training", "valid", "late"], group=["p1", None, "p2"])
    with pytest.raises(DataError, match=r"test\.parquet, row 2: unknown split 'late'"):
        scan(file)
    result = scan(file, splits={"late": TEST})
    assert [sample.split for sample in result.samples] == [TRAIN, VAL, TEST]
    assert [sample.group for sample in result.samples] == ["p1", "", "p2"]
    assert [sample.split for sample in scan(file, splits="none").samples] == [None] * 3


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.struct([("bytes", pa.large_binary())]),
        pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
        IMAGE_TYPE,
    ],
)
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["cat", "dog"]), ["cat", "dog"]),
        (pa.array(["cat", "dog"]).dictionary_encode(), ["cat", "dog"]),
        (pa.array(["cat", "dog"], pa.large_string()), ["cat", "dog"]),
        (pa.array(["cat", "dog"], pa.string_view()), ["cat", "dog"]),
        (pa.array([3, 12], pa.uint8()), ["3", "12"]),
        (pa.array([True, False]), ["True", "False"]),
    ],
)
def test_columns_of_other_types(
    tmp_path: Path, kind: pa.DataType, labels: pa.Array, expected: list[str]
) -> None:
    contents = [encode_noise(1), encode_noise(2, "JPEG")]
    values = [{"bytes": c} for c in contents] if pa.types.is_struct(kind) else contents
    file = write_strings(tmp_path / "a.parquet", pa.array(values, kind), labels)
    result = scan(file)
    assert get_labels(result) == expected
    assert [(result.root / s.path).read_bytes() for s in result.samples] == contents
    assert [Path(s.path).suffix for s in result.samples] == [".png", ".jpg"]
    is_number = expected == ["3", "12"]
    assert any("numbers without class names" in note for note in result.notes) == is_number


def test_paths_are_read_beside_the_file(tmp_path: Path) -> None:
    """A column of texts lists image files; nothing is unpacked."""
    root = write_images(tmp_path / "d", "x/1.png", "2.png")
    outside = write_images(tmp_path, "3.png") / "3.png"
    paths = pa.array(["./x/1.png", "2.png", str(outside), "notes.txt"])
    columns = {"file_name": paths, "label": pa.array(["a", "b", "a", "b"])}
    result = scan(write_table(root / "metadata.parquet", columns))
    assert [s.path for s in result.samples] == ["x/1.png", "2.png", str(outside)]
    assert [entry.path for entry in result.rejected] == ["notes.txt"]
    assert not (tmp_path / "cache").exists()


def test_struct_of_paths_without_bytes_refers_to_files(tmp_path: Path) -> None:
    root = write_images(tmp_path / "d", "1.png", "2.png")
    rows = [(None, str(root / "1.png"), 0), (None, "2.png", 1), (encode_noise(5), "3.png", 2)]
    file = write_hub_file(root / "t/a.parquet", rows)
    (root / "2.png").rename(root / "t/2.png")
    result = scan(file)
    contents = [(result.root / sample.path).read_bytes() for sample in result.samples]
    assert contents == [encode_noise(0), encode_noise(1), encode_noise(5)]
    assert get_labels(result) == ["ant", "bee", "cow"]


def test_rows_without_image_or_label_are_rejected_with_their_row(tmp_path: Path) -> None:
    rows = [
        (encode_noise(1), None, 0),
        (None, None, 1),
        (b"", "x.png", 1),
        (encode_noise(2), None, -1),
        (encode_noise(3), None, 1),
    ]
    result = scan(write_hub_file(tmp_path / "a.parquet", rows))
    assert get_labels(result) == ["ant", "bee"]
    assert [(entry.path, entry.reason) for entry in result.rejected] == [
        ("a.parquet/row00001", "no image in this row"),
        ("a.parquet/row00002", "no image in this row"),
        ("a.parquet/row00003", "no label (-1)"),
    ]


def test_named_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    columns = {
        "photo": pa.array(make_images(2), IMAGE_TYPE),
        "mask": pa.array(make_images(2), IMAGE_TYPE),
        "fine": pa.array([0, 1]),
        "coarse": pa.array([1, 0]),
        "patient": pa.array([7, 8]),
    }
    names = {"fine": ["tabby", "pug"], "coarse": ["dog", "cat"]}
    write_table(file, columns, class_names=names)
    options = TableOptions("photo", "coarse", "patient")
    result = scan(file, tables=options)
    assert [(s.label, s.group) for s in result.samples] == [("cat", "7"), ("dog", "8")]
    with pytest.raises(DataError, match=r"several .* images: photo, mask\. .*image_column=photo"):
        scan(file, tables=TableOptions(label_column="fine"))
    with pytest.raises(DataError, match=r"several .* labels: fine, coarse\. .*label_column=fine"):
        scan(file, tables=TableOptions(image_column="photo"))
    with pytest.raises(DataError, match=r"no column 'phoot' \(data\.image_column\).*'photo'"):
        scan(file, tables=TableOptions("phoot", "fine"))
    adapted = TableOptions("photo", "coarse", "clinic").adapt_to_other_data()
    assert [s.group for s in scan(file, tables=adapted).samples] == ["", ""]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"pixels": [[1, 2]] * 2, "label": ["a", "b"]},
            r"no column 'image', and .* \(found: pixels, label\)",
        ),
        (
            {"image": [[1, 2]] * 2, "label": ["a", "b"]},
            r"column 'image' holds list<.*int64>, not images",
        ),
        (
            {"image": TWO},
            r"no column 'label', and .*found: image\)\. Name it, as in data\.label_column=NAME",
        ),
        ({"image": TWO, "Label": ["a", "b"], "LABEL": ["a", "b"]}, "'label' that differ in case"),
        ({"image": TWO, "label": [0.5, 1.0]}, "column 'label' holds double; expected texts"),
        (
            {"image": TWO, "label": [[0.5], [1.0]]},
            "column 'label' holds list<.*double>; expected texts, or .* or lists of these",
        ),
        ({"image": TWO, "label": ["a", None]}, r"a\.parquet, row 1: column 'label' is empty"),
        ({"image": TWO, "label": [" ", "a"]}, r"a\.parquet, row 0: the label is empty"),
        ({"image": ["1.png", "1.png"], "label": ["a", "b"]}, "row 0 and .*row 1: duplicate path"),
        ({"image": ["https://x.org/1.png"], "label": ["a"]}, "is an address"),
    ],
)
def test_unsuitable_columns_are_named(
    tmp_path: Path, columns: Mapping[str, Sequence[Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scan(write_table(tmp_path / "a.parquet", columns))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("image", "label", "image"), "image"),
        (("image", "label", "label"), "label"),
        (("image", "Label", "Label"), "Label"),
        (("pixels", "label", "pixels"), "pixels"),
        (("image", "label", "split", "split"), "split"),
        (("image", "label", "group", "group"), "group"),
    ],
)
def test_columns_of_one_name_are_named(tmp_path: Path, names: Sequence[str], named: str) -> None:
    images = pa.array(make_images(2), IMAGE_TYPE)
    values = [images if n in ("image", "pixels") else pa.array(["a", "b"]) for n in names]
    parquet.write_table(pa.table(values, names=list(names)), tmp_path / "a.parquet")
    message = rf"a\.parquet has 2 columns '{named}'\. Rename all but one\."
    with pytest.raises(DataError, match=message):
        scan(tmp_path / "a.parquet")
    if named in ("image", "pixels"):
        with pytest.raises(DataError, match=message):
            open_stream([tmp_path / "a.parquet"])


def test_other_columns_of_one_name_are_passed_over(tmp_path: Path) -> None:
    images = pa.array(make_images(2), IMAGE_TYPE)
    texts = pa.array(["a", "b"])
    table = pa.table([images, texts, texts, texts], names=["image", "label", "note", "note"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert get_labels(scan(tmp_path / "a.parquet")) == ["a", "b"]


def test_label_outside_of_the_class_names_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [(encode_noise(n), None, label) for n, label in enumerate([0, 1, 3])]
    file = write_hub_file(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: label 3 has no name; .* 0 to 2\."):
        scan(file)


def test_files_with_different_class_names_are_refused(tmp_path: Path) -> None:
    row = [(encode_noise(1), None, 0)]
    write_hub_file(tmp_path / "d/train-0.parquet", row, names=["cat", "dog"])
    write_hub_file(tmp_path / "d/test-0.parquet", row, names=["dog", "cat"])
    with pytest.raises(DataError, match="different class names for the same numbers"):
        scan(tmp_path / "d")


def test_settings_that_cannot_apply_are_refused(tmp_path: Path) -> None:
    images = pa.array(make_images(2), IMAGE_TYPE)
    file = write_strings(tmp_path / "a.parquet", images, [["cat"], ["dog"]])
    with pytest.raises(DataError, match=r"lists \(list<.*data\.task=single_label"):
        scan(file, tables=TableOptions(labels=LabelFormat("single_label")))
    with pytest.raises(DataError, match=r"data\.label_columns cannot apply"):
        scan(file, tables=TableOptions(labels=LabelFormat("multi_label", ("cat",))))
    write_strings(tmp_path / "b.parquet", images, ["cat", "dog"])
    with pytest.raises(DataError, match="lists of labels and others one class"):
        scan(tmp_path)
    folder = write_images(tmp_path / "d", "a/1.png", "b/1.png")
    with pytest.raises(DataError, match=r"data\.label_column=x cannot apply"):
        scan(folder, tables=TableOptions(label_column="x"))


NUMBERS = pa.array([[2, 0], [], None, [1, 1], [-1]], pa.list_(pa.int64()))
TEXTS = pa.array([["cow", "ant "], [], None, ["bee", "bee"], [""]])


def write_lists(file: Path, name: str, labels: pa.Array, feature: Any = None) -> Path:
    columns = {"image": pa.array(make_images(5), IMAGE_TYPE), name: labels}
    write_table(file, columns)
    if feature is not None:
        text = json.dumps({"info": {"features": {name: feature}}})
        table = parquet.read_table(file).replace_schema_metadata({"huggingface": text})
        parquet.write_table(table, file)
    return file


LABEL = {"names": list(CLASSES), "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("name", "labels", "feature"),
    [
        pytest.param("labels", NUMBERS, {"feature": LABEL, "_type": "Sequence"}, id="sequence"),
        pytest.param("objects", NUMBERS, {"feature": LABEL, "_type": "List"}, id="list"),
        pytest.param("label", NUMBERS, [LABEL], id="early_release"),
        pytest.param("labels", TEXTS, None, id="texts"),
        pytest.param("labels", TEXTS.cast(pa.large_list(pa.large_string())), None, id="large"),
    ],
)
def test_lists_of_labels_are_those_of_multi_label_images(
    tmp_path: Path, name: str, labels: pa.Array, feature: Any
) -> None:
    result = scan(write_lists(tmp_path / "a.parquet", name, labels, feature))
    assert [s.labels for s in result.samples] == [("ant", "cow"), (), (), ("bee",), ()]
    assert [s.label for s in result.samples][:2] == ["ant|cow", "(no label)"]
    assert result.rejected == ()


@pytest.mark.parametrize("value_type", [pa.int64(), pa.int8(), pa.bool_(), pa.string()])
@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("feature", [None, {"feature": LABEL, "_type": "Sequence"}])
def test_lists_of_a_value_for_each_label_are_an_error(
    tmp_path: Path, value_type: pa.DataType, length: int, feature: Any
) -> None:
    rows = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], None]
    cut = [None if row is None else row[:length] for row in rows]
    labels = pa.array(cut, pa.list_(pa.int64())).cast(pa.list_(value_type, length))
    with pytest.raises(DataError, match=r"'labels' holds lists of .*: write a list of their names"):
        scan(write_lists(tmp_path / "a.parquet", "labels", labels, feature))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["ant|bee", "ant", "bee", "cow", "ant|cow"], r"2 labels with '\|', such as 'ant\|bee'"),
        (["ant;bee", "ant", "bee", "cow", "ant;cow"], r"2 classes with ';'.*label_separator=';'"),
        (["['ant']", "['bee', 'ant']", "[]", "['ant']", "[]"], "3 labels in brackets"),
    ],
)
def test_texts_of_several_labels_are_told(tmp_path: Path, texts: list[str], message: str) -> None:
    file = write_strings(tmp_path / "a.parquet", pa.array(make_images(5), IMAGE_TYPE), texts)
    assert re.search(message, " ".join(scan(file).notes))
    given = TableOptions(labels=LabelFormat("single_label"))
    assert scan(file, tables=given).notes == ()
    if "|" not in message:
        with pytest.raises(DataError, match="ant"):
            scan(file, tables=TableOptions(labels=LabelFormat("multi_label")))


def test_numbers_in_lists_without_names_are_the_names(tmp_path: Path) -> None:
    result = scan(write_lists(tmp_path / "a.parquet", "labels", NUMBERS))
    assert result.samples[0].labels == ("0", "2")
    assert any("numbers without class names" in note for note in result.notes)


def test_texts_of_several_labels_are_divided_if_the_task_says_so(tmp_path: Path) -> None:
    images = pa.array(make_images(4), IMAGE_TYPE)
    file = write_strings(tmp_path / "a.parquet", images, ["cat | dog", "", "cat,dog", "dog"])
    reporter = RecordingReporter()
    options = TableOptions(labels=LabelFormat("multi_label"))
    result = scan(file, tables=options, reporter=reporter)
    found = [("cat", "dog"), (), ("cat,dog",), ("dog",)]
    assert [sample.labels for sample in result.samples] == found
    assert any("data.label_separator=','" in warning for warning in reporter.warnings)


def test_group_by_searches_the_names_that_the_file_gives(tmp_path: Path) -> None:
    rows = [(encode_noise(n), f"clip{n // 2}_{n}.png", n % 3) for n in range(6)]
    file = write_hub_file(tmp_path / "a.parquet", rows)
    result = scan(file, tables=TableOptions(group_by=r"^(?P<group>clip\d)_"))
    assert [s.group for s in result.samples] == [f"clip{n // 2}" for n in range(6)]
    write_hub_file(file, [(content, None, label) for content, _, label in rows])
    with pytest.raises(DataError, match=r"finds no group in any of 6 paths \(such as a\.parquet/"):
        scan(file, tables=TableOptions(group_by=r"clip(\d)_"))


def test_images_to_predict_need_no_labels(tmp_path: Path) -> None:
    images = pa.array([*make_images(2), None], IMAGE_TYPE)
    write_table(tmp_path / "d/new.parquet", {"image": images})
    for path in (tmp_path / "d", tmp_path / "d/new.parquet", tmp_path / "d/n*.parquet"):
        listed = list_images(path)
        assert [file.read_bytes() for file in listed.files] == [encode_noise(0), encode_noise(1)]
        names = [listed.get_name(str(file)) for file in listed.files]
        assert names == ["new.parquet/row00000", "new.parquet/row00001"]
        assert [entry.path for entry in listed.rejected] == ["new.parquet/row00002"]


def test_message_for_other_data_says_to_rename_the_column(tmp_path: Path) -> None:
    """Evaluation and prediction have no option for a column."""
    tables = TableOptions().adapt_to_other_data()
    file = write_table(tmp_path / "a.parquet", {"pixels": [[1]], "kind": ["a"]})
    with pytest.raises(DataError, match=r"Rename the column of the images to 'image'\.$"):
        list_images(file, tables=tables)
    write_table(file, {"image": [TWO[0]], "kind": ["a"]})
    with pytest.raises(DataError, match=r"Rename the column of the labels to 'label'\.$"):
        scan(file, tables=tables)
    write_table(file, {"first": [TWO[0]], "second": [TWO[0]]})
    with pytest.raises(DataError, match=r"Rename the one to read to 'image'\.$"):
        list_images(file, tables=tables)
    assert len(list_images(file, tables=TableOptions("second", is_strict=False)).files) == 1


def test_numbers_of_splits_and_missing_groups(tmp_path: Path) -> None:
    """Split 0 is a split; NaN, by which pandas writes a missing value, is no group."""
    rows = [(encode_noise(n), None, n) for n in range(3)]
    groups = pa.array([7.0, float("nan"), 0.5])
    file = write_hub_file(tmp_path / "a.parquet", rows, split=pa.array([0, 1, None]), group=groups)
    result = scan(file, splits={"0": TRAIN, "1": VAL})
    assert [sample.split for sample in result.samples] == [TRAIN, VAL, None]
    assert [sample.group for sample in result.samples] == ["7", "", "0.5"]
    columns = {
        "image": pa.array(make_images(4), IMAGE_TYPE),
        "label": ["a", "b", "a", "b"],
        "split": [0, 1, 2, -1],
        "group": [1, 0, -1, 0],
    }
    names = {"split": ["train", "validation", "test"], "group": ["left", "right"]}
    result = scan(write_table(file, columns, class_names=names))
    assert [sample.split for sample in result.samples] == [TRAIN, VAL, TEST, None]
    assert [sample.group for sample in result.samples] == ["right", "left", "", "left"]
    write_table(file, {**columns, "split": [0, 1, 2, 3]}, class_names=names)
    with pytest.raises(DataError, match=r"row 3: split 3 has no name; .* 0 to 2\."):
        scan(file)


def test_names_of_columns_are_read_in_any_case(tmp_path: Path) -> None:
    images = pa.array(make_images(2), IMAGE_TYPE)
    columns = {"Image": images, "LABEL": ["a", "b"], "Split": ["train", "val"], "Group": [1, 2]}
    file = write_table(tmp_path / "a.parquet", {**columns, "Kind": ["x", "y"]})
    assert [(s.label, s.split, s.group) for s in scan(file).samples] == [
        ("a", TRAIN, "1"),
        ("b", VAL, "2"),
    ]
    assert get_labels(scan(file, tables=TableOptions(label_column="kind"))) == ["x", "y"]


def test_partitions_in_the_names_of_folders_are_refused(tmp_path: Path) -> None:
    for number, label in enumerate(("cat", "dog")):
        file = tmp_path / f"d/label={label}/part-0.parquet"
        write_table(file, {"image": pa.array(make_images(number + 1), IMAGE_TYPE)})
    with pytest.raises(DataError, match=r"folders of partitions \(label=dog\).*not read.*column"):
        scan(tmp_path / "d")
    for path in (file, file.parent):
        with pytest.raises(DataError, match=r"names of folders \(label=dog\) are not read"):
            scan(path)


def test_unpacking_is_told_once(tmp_path: Path) -> None:
    file = write_hub_file(tmp_path / "a.parquet", [(encode_noise(n), None, n) for n in range(3)])
    reporter = RecordingReporter()
    first = scan(file, reporter=reporter)
    assert scan(file, reporter=reporter) == first
    (note,) = reporter.notes
    assert note.startswith("Unpacked 3 images of 1 file (")
