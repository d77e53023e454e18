"""Tests of CSVs whose images have any number of labels."""

import re
from pathlib import Path

import pytest

from finetune.data.layouts.table_options import TableOptions
from finetune.data.scan import Scan, scan
from finetune.errors import DataError
from finetune.types import LabelFormat
from tests.support.helpers import RecordingReporter, write_images

MULTI_LABEL = LabelFormat("multi_label")


def scan_text(folder: Path, text: str, labels: LabelFormat | None = None) -> Scan:
    file = folder / "list.csv"
    file.write_text(text, encoding="utf-8")
    return scan(file, tables=TableOptions(labels=labels or LabelFormat()))


def get_labels(result: Scan) -> list[tuple[str, ...] | None]:
    return [sample.labels for sample in result.samples]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        pytest.param(
            "path,labels\na.png,dog|cat\nb.png,\nc.png,cat| |cat", LabelFormat(), id="auto"
        ),
        pytest.param("path,label\na.png,dog|cat\nb.png,\nc.png,cat", MULTI_LABEL, id="task"),
        pytest.param(
            "path;labels\na.png;dog|cat\nb.png;\nc.png;cat", LabelFormat(), id="semicolon"
        ),
        pytest.param(
            "path,labels\na.png,dog; cat\nb.png,\nc.png,cat",
            LabelFormat(separator=";"),
            id="separator",
        ),
        pytest.param(
            "path,cat,dog\na.png,1,1.0\nb.png,0,\nc.png,True,no", MULTI_LABEL, id="all_columns"
        ),
        pytest.param(
            "note,dog,path,cat\nx,1,a.png,yes\n?,0,b.png,0\n-,0,c.png,1",
            LabelFormat("multi_label", ("cat", "dog")),
            id="columns",
        ),
    ],
)
def test_scan_multi_label_csv(tmp_path: Path, text: str, labels: LabelFormat) -> None:
    result = scan_text(tmp_path, text, labels)
    assert get_labels(result) == [("cat", "dog"), (), ("cat",)]
    assert [s.label for s in result.samples] == ["cat|dog", "(no label)", "cat"]


def test_scan_multi_label_columns_keep_their_case_and_drop_those_without_a_one(
    tmp_path: Path,
) -> None:
    result = scan_text(tmp_path, "path,Cat,DOG,Emu\na.png,1,0,0\nb.png,0,1,0", MULTI_LABEL)
    assert get_labels(result) == [("Cat",), ("DOG",)]
    assert any("Emu" in note and "no label" in note for note in result.notes)


def test_scan_single_label_csv_with_bars_says_how_to_read_several_labels(tmp_path: Path) -> None:
    text = "path,label\na.png,cat|dog\nb.png,cat"
    (note,) = scan_text(tmp_path, text).notes
    assert "'cat|dog'" in note
    assert "data.task=multi_label" in note
    result = scan_text(tmp_path, text, LabelFormat("single_label"))
    assert result.notes == ()
    assert [(s.label, s.labels) for s in result.samples] == [("cat|dog", None), ("cat", None)]


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("path,cat\na.png,2", MULTI_LABEL, r"line 2: column 'cat' holds '2'"),
        ("path,a|b,c\na.png,1,0", MULTI_LABEL, r"column 'a\|b' has the separator.*Rename"),
        ("path,cat,note\na.png,1,x", MULTI_LABEL, r"column 'note' holds 'x'.*data\.label_columns"),
        ("path,cat\na.png,1", LabelFormat("multi_label", ("cow",)), r"no column 'cow'"),
        ("path,split\na.png,train", MULTI_LABEL, r"has no labels: expected a column labels"),
        ("file,labels\na.png,cat", LabelFormat(), r"no column 'path'"),
        (
            "path,label\na.png,cat\nb.png,\nc.png,cat|dog",
            LabelFormat(),
            r"line 3: path or label is empty.*data\.task=multi_label",
        ),
        ("path,tags\na.png,cat", LabelFormat(), r"no column 'label'"),
    ],
)
def test_scan_invalid_multi_label_csv(
    tmp_path: Path, text: str, labels: LabelFormat, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scan_text(tmp_path, text, labels)


def test_scan_folder_as_multi_label_asks_for_a_csv(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/a.png", "dog/b.png")
    with pytest.raises(DataError, match=r"data\.task=multi_label.*path,labels"):
        scan(tmp_path, tables=TableOptions(labels=MULTI_LABEL))


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,dog|Cat\nb.png,",
        "path,labels\na.png,dog|Cat\nb.png,",
        "path,note,cat,dog,emu\na.png,x,1,1,1\nb.png,y,0,0,0",
    ],
)
def test_scan_other_data_of_a_model_takes_its_labels_where_they_are(
    tmp_path: Path, text: str
) -> None:
    labels = LabelFormat("multi_label", ("cat", "cow"))
    tables = TableOptions(labels=labels).adapt_to_other_data(("Cat", "dog"))
    result = scan_text(tmp_path, text, tables.labels)
    assert get_labels(result) == [("Cat", "dog"), ()]
    assert result.notes == ()


COMMAS = 'a.png,"cat,dog"\nb.png,cat\nc.png,"dog, cow"\nd.png,cow\n'


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (COMMAS, r"2 labels that consist of other labels with ',' .*label_separator=','"),
        (COMMAS.replace(",d", ";d").replace(", c", "; c"), r"with ';' .*label_separator=';'"),
        # no label alone, but each in several texts
        ('a.png,"x,y"\nb.png,"y,z"\nc.png,"z,x"\n', r"3 labels .*such as 'x,y'"),
        ("a.png,\"['cat', 'dog']\"\nb.png,['cow']\n", r"lists in brackets.*as cat\|dog"),
    ],
)
def test_labels_that_another_separator_joins_are_refused(
    tmp_path: Path, rows: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scan_text(tmp_path, f"path,labels\n{rows}")


@pytest.mark.parametrize(
    ("rows", "separator"),
    [
        (COMMAS, ","),
        (COMMAS, "||"),  # unusual, so set on purpose
        ('a.png,"Paris, France"\nb.png,"Lima, Peru"\nc.png,cat\n', "|"),
        ("a.png,red car|blue bus\nb.png,red bus\nc.png,car\n", "|"),
        ("a.png,cat|dog\nb.png,cow\n", "|"),
    ],
)
def test_labels_with_marks_in_their_names_are_read_in_silence(
    tmp_path: Path, rows: str, separator: str
) -> None:
    labels = LabelFormat("multi_label", separator=separator)
    warnings = list_warnings(tmp_path, f"path,labels\n{rows}", labels)
    assert warnings == []


def test_doubtful_separators_are_warned_of(tmp_path: Path) -> None:
    names = ["agriculture", "clear", "cloudy", "primary", "road"]
    pairs = [f"{a} {b}" for a in names for b in names if a != b]
    rows = "".join(f"{row}.png,{pair}\n" for row, pair in enumerate(pairs))
    (warning,) = list_warnings(tmp_path, f"path,labels\n{rows}", LabelFormat())
    assert "a blank between them" in warning
    # some texts have the separator that is set, and others another one
    mixed = f"path,labels\n{COMMAS}e.png,cat|cow\n"
    (warning,) = list_warnings(tmp_path, mixed, LabelFormat())
    assert "'cat,dog'" in warning


def test_joined_labels_of_other_data_of_a_model_are_refused(tmp_path: Path) -> None:
    labels = LabelFormat("multi_label", known=("cat", "dog"))
    with pytest.raises(DataError, match=r"'cat,dog'\. Write '\|' between the labels"):
        scan_text(tmp_path, 'path,labels\na.png,"cat,dog"\nb.png,\n', labels)


def test_single_labels_that_consist_of_others_say_how_to_read_them(tmp_path: Path) -> None:
    text = f"path,label\n{COMMAS}"
    (note,) = scan_text(tmp_path, text).notes
    assert "data.task=multi_label data.label_separator=','" in note
    assert scan_text(tmp_path, text, LabelFormat("single_label")).notes == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "a.png,\"['cat', 'dog']\"\nb.png,['cow']\n",
            r"2 labels in brackets, such as \['c.*cat\|dog",
        ),
        ('a.png,"[""ant""]"\nb.png,"[""bee""]"\n', r"2 labels in brackets, such as \[\"ant\"\]"),
        ("a.png,cat+dog\nb.png,cat\nc.png,dog\n", r"with '\+'.* data.label_separator='\+'"),
        ("a.png,cat\tdog\nb.png,cat\nc.png,dog\n", r"with a tab.*data.label_separator=\$'\\t'"),
    ],
)
def test_single_labels_in_other_forms_of_several_are_told(
    tmp_path: Path, rows: str, message: str
) -> None:
    text = f"path,label\n{rows}"
    assert re.search(message, " ".join(scan_text(tmp_path, text).notes))
    with pytest.raises(DataError, match=r"brackets|label_separator"):
        scan_text(tmp_path, text, LabelFormat("multi_label"))


def list_warnings(folder: Path, text: str, labels: LabelFormat) -> list[str]:
    file = folder / "list.csv"
    file.write_text(text, encoding="utf-8")
    reporter = RecordingReporter()
    scan(file, tables=TableOptions(labels=labels), reporter=reporter)
    return reporter.warnings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,glass,recyclable,note\na.png,1,0,1\nb.png,0,1,2\n",
            "glass and recyclable hold only 0 and 1.*set data.label_columns=glass,recyclable",
        ),
        (
            "path;my label\na.png;1\nb.png;0\n",
            "my label holds only 0 and 1.*'data.label_columns=my label'",
        ),
        ("path,species\na.png,cat\nb.png,dog\n", r"name it, as in data.label_column=NAME"),
        ("path,count\na.png,1\nb.png,1\n", r"name it, as in data.label_column=NAME"),
        ("file,labels\na.png,cat|dog\n", "first line must name path,labels and may"),
        ("file,label\na.png,cat\n", "first line must name path,label and may"),
    ],
)
def test_missing_column_is_explained_by_the_columns_that_there_are(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scan_text(tmp_path, text)
