"""Tests of CSVs of labelled images."""

import unicodedata
from pathlib import Path

import pytest

from finetune.data.layouts.table_options import TableOptions
from finetune.data.scan import scan
from finetune.errors import DataError
from finetune.types import RejectedFile, Sample, Split
from tests.support.helpers import write_images

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


def test_scan_csv_keeps_a_path_through_a_link_and_rows_without_any_split(tmp_path: Path) -> None:
    (tmp_path / "far/x").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/x")
    text = "path,label,split\nlink/../a.png,cat\na.png,dog\nlink/../../a/b.png,dog,\n"
    found = scan(write_csv(tmp_path / "l.csv", text)).samples
    assert [(s.path, s.split) for s in found] == [
        ("link/../a.png", None),
        ("a.png", None),
        ("link/../../a/b.png", None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,cat\nb.png,cat\n./a.png,dog\n", r"lines 2 and 4: .*a\.png"),
        ("path,label\na.png,cat\n{root}/a.png,cat\n", r"lines 2 and 3: .*a\.png"),
        ("path,label,split\na.png,cat,trian\n", r"line 2: .*'trian'.*'train'"),
        ("path,label\nx/a.png,cat\nx/../x/a.png,dog\n", r"lines 2 and 3: .*x/a\.png"),
        ("path,label\nx/a.png,cat\n{root}/y/../x/a.png,dog\n", r"lines 2 and 3: .*x/a\.png"),
        ("path,label\n../y/a.png,cat\n../z/../y/a.png,dog\n", r"lines 2 and 3: .*\.\./y/a\.png"),
        ("path,label\n../y/a.png,cat\n{root}/../y/a.png,dog\n", r"lines 2 and 3: .*/y/a\.png"),
        ("path,label,split\na.png,cat,train\nb.png,dog\n", "line 3: 2 values in 3 columns"),
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


GOOD = "path,label\na.png,cat\nb.png,dog\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # two columns alike
        ("path,label,Label\na.png,cat,x\n", r"line 1: the columns 'label' and 'Label' have"),
        ("path,label, label \na.png,cat,x\n", "'label' and 'label' have the same name"),
        ("path,label,note,NOTE\na.png,cat,x,y\n", "'note' and 'NOTE' have the same name"),
        ("\npath,label,PATH\na.png,cat,x\n", "line 2: the columns"),
        # more fields than columns
        (f"{GOOD}c.png,cat, small\n", "line 4: more values than the 2 columns: 'small' is left"),
        (f'{GOOD}"c.png",cat,,x\n', "line 4: more values"),
        ('path,label,note\na.png,cat,"two\nlines"\nb.png,dog,x,y\n', "line 4: more values"),
        # a stray quote
        (f'{GOOD}"c.png,cat\nd.png,cat\n"e.png,cat\n', "line 4: a quotation mark .* to 6"),
        (f'{GOOD}"c.png,cat\nd.png,cat\n', "line 4: a quotation mark .* to 5"),
        (f'{GOOD}c.png,"cat\nd.png,cat\ne.png,dog"\n', "line 4: a quotation mark .* to 6"),
        (f'{GOOD}c.png,"cat" big\n', "line 4: a quotation mark is not closed properly. Remove"),
        ('path,label,note\na.png,cat,"x\nb.png,dog,y"\n', "line 2: a quotation mark"),
        ('"path,label\na.png,cat\n"b.png,dog\n', "line 1: a quotation mark"),
        (f'{GOOD}"c.png,cat\nd.png",dog\n', "line 4: a quotation mark .* to 5"),
        (f'{GOOD}c.png,"cat\nd.png"\n', "line 4: .* to 5, so that the label has a line break"),
        ('path,label,split\na.png,"a,train\nb.png,b",val\n', "line 2: a quotation mark"),
        ('path,note,label\na.png,"x,cat\nb.png,y",dog\n', "line 2: a quotation mark"),
        ('path,label,group\na.png,cat,"g1\ng2"\n', "line 2: .* the group has a line break"),
        (f'{GOOD}"c.png,cat\n' + "d.png,cat\n" * 20_000, "line 4: a quotation mark"),
        # paths and labels
        (f"{GOOD}\n\n,cat\n", "line 6: path or label is empty"),
        (f"{GOOD}c.png,\u200b\n", "line 4: path or label is empty"),
        ('path,label,x\na.png,cat,"a\nb"\nb.png,c\nb.png,c\n', "lines 4 and 5: duplicate path b"),
        (f"{GOOD}C:\\photos\\c.png,cat\n", r"line 4: C:\\photos\\c\.png is a path of Windows"),
        (f"{GOOD}D:/photos/c.png,cat\n", "line 4: D:/photos/c.png is a path of Windows"),
        (f"{GOOD}\\\\server\\c.png,cat\n", "line 4: .* is a path of Windows"),
        (f"{GOOD}https://a.org/c.png,cat\n", "line 4: https://a.org/c.png is an address"),
        ("a.png,cat\nb.png,dog\n", "no column 'path' .*Is the header missing"),
        ("path;label\na.png;cat;x\n", "line 2: more values than the 2 columns"),
    ],
)  # fmt: skip
def test_scan_csv_error_names_the_line_where_a_record_begins(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scan(write_csv(tmp_path / "list.csv", text))


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("path;label\na.png;cat\nb.png;dog, brown\n", "list.csv is separated by semicolons."),
        ("path\tlabel\na.png\tcat\nb.png\tdog, brown\n", "list.csv is separated by tabs."),
        ('"path";"label"\n"a.png";"cat"\n"b.png" ;"dog, brown"\n', "separated by semicolons"),
        ("sep=;\r\npath;label\r\na.png;cat\r\nb.png;dog, brown\r\n", "separated by semicolons"),
        ('path,label\na.png,cat\nb.png,"dog, brown",,\n,,,\n', None),
        ('path,label,,\na.png,cat,,\nb.png,"dog, brown",,\n', None),
        ('"path" , "label"\n"a.png" ,"cat" \nb.png, "dog, brown"\n', None),
        ("path,label\ra.png,cat\rb.png,\"dog, brown\"\r", None),
        ('path,label,note\na.png,cat,"two\nlines"\nb.png,"dog, brown","5"" wide"\n', None),
        ("path,label\na.png,c\u200bat\nb.png,\"dog, brown\"\n", "Label 'c\\u200bat' is read as"),
    ],
)  # fmt: skip
def test_scan_csv_forms_that_are_read(tmp_path: Path, text: str, note: str | None) -> None:
    result = scan(write_csv(tmp_path / "list.csv", text))
    assert [(s.path, s.label) for s in result.samples] == [
        ("a.png", "cat"),
        ("b.png", "dog, brown"),
    ]
    assert [note in line for line in result.notes if note] == ([True] if note else [])
    assert bool(result.notes) is bool(note)


def test_scan_csv_encodings_of_spreadsheets(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    text = "path\tlabel\na.png\tcr\u00e8me\n"
    file.write_bytes(text.encode("utf-16"))
    result = scan(file)
    assert [sample.label for sample in result.samples] == ["cr\u00e8me"]
    assert result.notes == ("list.csv is read as UTF-16.", "list.csv is separated by tabs.")
    file.write_bytes(text.encode("utf-16-le"))
    with pytest.raises(DataError, match=r"list\.csv is not in UTF-8 but probably in UTF-16"):
        scan(file)
    file.write_bytes(text.encode("cp1252"))
    with pytest.raises(DataError, match=r"line 2, byte 0xe8\) but probably in Windows-1252"):
        scan(file)


def test_scan_csv_path_without_suffix_names_the_file_that_fits(tmp_path: Path) -> None:
    write_images(tmp_path, "img/1.png", "img/2.png")
    text = "path,label\nimg/1,cat\nimg/2,dog\n"
    with pytest.raises(DataError, match=r"no image: its 2 rows .* line 2: img/1: no image suffix"):
        scan(write_csv(tmp_path / "list.csv", text))
    with pytest.raises(DataError, match=r"img/1\.png exists: write this path"):
        scan(tmp_path / "list.csv")
    mixed = "path,label\nimg/1.png,cat\n2,dog\n"
    with pytest.raises(DataError, match=r"no image of class 'dog': its row .* img/2\.png exists"):
        scan(write_csv(tmp_path / "list.csv", mixed))
    result = scan(tmp_path / "list.csv", allow_empty=True)
    assert result.empty_classes == (("dog", None),)
    assert "no image of class 'dog': its row is left out" in result.notes[0]
    assert result.rejected == (RejectedFile("2", "no image suffix"),)


def test_scan_csv_paths_of_windows_are_read_and_noted(tmp_path: Path) -> None:
    write_images(tmp_path, "img/1.png", "a\\b.png")
    text = "path,label\nimg\\1.png,cat\nimg\\2.png,dog\na\\b.png,dog\n"
    result = scan(write_csv(tmp_path / "list.csv", text))
    assert [sample.path for sample in result.samples] == ["img/1.png", "img/2.png", "a\\b.png"]
    assert result.notes == ("list.csv has paths of Windows: backslashes are read as slashes.",)
    text = "path,label\nC:\\data\\img\\1.png,cat\n"
    with pytest.raises(DataError, match=r"img/1\.png exists there"):
        scan(write_csv(tmp_path / "list.csv", text))


def test_scan_csv_splits_by_name_by_setting_and_ignored(tmp_path: Path) -> None:
    text = "path,label,split\na.png,cat,Training\nb.png,dog,night\n"
    file = write_csv(tmp_path / "list.csv", text)
    with pytest.raises(DataError, match=r"line 3: unknown split 'night'.*data\.splits='night=val'"):
        scan(file)
    assert [s.split for s in scan(file, splits={"Night": VAL}).samples] == [TRAIN, VAL]
    assert [s.split for s in scan(file, splits="none").samples] == [None, None]


PATIENTS = "label,Species,file,patient\n?,cat,a.png,p1\n?,dog,b.png,p2\n"


def test_scan_csv_with_named_columns(tmp_path: Path) -> None:
    """Named columns are read instead of those with the usual names, in any case."""
    options = TableOptions("file", "species", "Patient")
    found = scan(write_csv(tmp_path / "l.csv", PATIENTS), tables=options).samples
    assert found == (Sample("a.png", "cat", None, "p1"), Sample("b.png", "dog", None, "p2"))
    text = PATIENTS.replace(",", ";")
    assert scan(write_csv(tmp_path / "l.csv", text), tables=options).samples == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TableOptions("file", "specie"), r"no column 'specie' \(data\.label_column\).*'species'"),
        (
            TableOptions("file", group_column="x"),
            r"no column 'x' \(data\.group_column\)\. Known: label, path",
        ),
        (TableOptions(), r"no column 'path' .* data\.image_column=NAME"),
    ],
)
def test_scan_csv_without_a_named_column(
    tmp_path: Path, options: TableOptions, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scan(write_csv(tmp_path / "l.csv", PATIENTS), tables=options)


def test_scan_csv_of_other_data_takes_usual_columns_for_missing_ones(tmp_path: Path) -> None:
    options = TableOptions("file", "species", "patient").adapt_to_other_data()
    found = scan(write_csv(tmp_path / "l.csv", "path,label,group\na.png,cat,g\n"), tables=options)
    assert found.samples == (Sample("a.png", "cat", None, "g"),)


def test_scan_csv_with_a_column_of_bytes_that_are_no_images_is_told(tmp_path: Path) -> None:
    text = "image_bytes,label\nAAECAwQF,cat\n"
    with pytest.raises(DataError, match=r"'image_bytes' holds no image files in base64"):
        scan(write_csv(tmp_path / "l.csv", text))
