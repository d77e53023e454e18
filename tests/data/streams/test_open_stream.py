"""Tests of streams of images: what each kind of input yields, and how mistakes are named."""

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune.data.layouts.table_options import TableOptions
from finetune.data.streams import piped_stream
from finetune.data.streams.open_stream import JoinedStream, describe_other_files, open_stream
from finetune.data.streams.path_lines import read_path_lines
from finetune.data.streams.piped_stream import PipedStream
from finetune.data.streams.stream_image import ImageStream, StreamImage, StreamSource
from finetune.data.streams.tar_stream import expand_braces
from finetune.errors import ConfigError, DataError
from finetune.types import StrPath
from tests.support.helpers import create_noise, write_images
from tests.support.parquet import encode_noise, write_hub_file


def read(
    *inputs: StrPath, lists: Sequence[Path] = (), column: str | None = None
) -> list[StreamImage]:
    tables = TableOptions(is_strict=False) if column is None else TableOptions(image_column=column)
    return list(open_stream([Path(i) for i in inputs], lists=lists, tables=tables).iterate())


def write_tar(file: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def get_pixels(image: StreamImage) -> object:
    return np.asarray(StreamSource([image]).open(0).to_pil()).tolist()


class Pipe(io.BytesIO):
    """Standard input in a test, of which a call returns a few bytes."""

    def read1(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        return super().read1(min(size or 7, 7))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_folder_yields_files_with_an_image_suffix_in_the_order_of_names(tmp_path: Path) -> None:
    write_images(tmp_path / "new", "b.png", "a.png", "c/d.png")
    (tmp_path / "new/notes.md").touch()
    (tmp_path / "new/.hidden.png").touch()
    os.mkfifo(tmp_path / "new/c/pipe.png")
    stream = open_stream([Path("new")])
    before = stream.compute_fingerprint()
    images = list(stream.iterate())
    assert [image.name for image in images] == [
        "new/a.png", "new/b.png", "new/c/d.png", "new/c/pipe.png"
    ]  # fmt: skip
    assert [image.reason for image in images] == [None, None, None, "not a regular file"]
    assert stream.count() == 4
    assert describe_other_files(stream) == "1 file without an image suffix left out: notes.md"
    for name in ("README", "a.csv", "c/meta.json"):
        (tmp_path / "new" / name).touch()
    assert stream.count() == 4
    assert stream.compute_fingerprint() == before
    joined = open_stream([Path("new"), Path("new/notes.md"), Path("new/c")])
    assert [i.name for i in joined.iterate() if i.reason is None].count("new/notes.md") == 1
    assert describe_other_files(joined) == (
        "5 files without an image suffix left out: README, a.csv, notes.md, …"
    )


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"\xef\xbb\xbfa.png\r\n\r\nb.png", ["a.png", "b.png"]),
        (b"a.png\0b\nc.png\0", ["a.png", "b\nc.png"]),
        (b"a.png", ["a.png"]),
        (b"\n\n", []),
        ("é/蜂.png\n".encode(), ["é/蜂.png"]),
        (b"\xff.png\n", [os.fsdecode(b"\xff.png")]),
    ],
)
def test_read_path_lines_by_line_or_zero_byte(text: bytes, paths: list[str]) -> None:
    assert list(read_path_lines(io.BytesIO(text))) == paths
    assert list(read_path_lines(Pipe(text))) == paths
    for size in (1, 5):
        stream = io.BytesIO(text)
        assert list(read_path_lines(stream, stream.read(size))) == paths


def test_list_is_relative_to_the_current_folder_or_else_to_its_own(tmp_path: Path) -> None:
    write_images(tmp_path / "data", "a.png", "b.png")
    lists = tmp_path / "data" / "list.txt"
    lists.write_text("a.png\nb.png\ngone.png\nhttps://host/c.png\n")
    images = read(lists)
    assert [image.name for image in images] == ["a.png", "b.png", "gone.png", "https://host/c.png"]
    assert images[0].path == tmp_path / "data" / "a.png"
    assert images[3].reason is not None
    assert images[3].reason.startswith("an address")
    here = tmp_path / "other"
    here.write_text("data/a.png\n")
    assert [image.path for image in read(lists=[here])] == [Path("data/a.png")]


@pytest.mark.parametrize(
    ("name", "text"), [("list.txt", "http://host/a.png\n"), ("t.csv", "path\nhttp://host/a.png\n")]
)
def test_list_of_addresses_is_refused_by_the_first_one(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} lists addresses.*http://host/a\.png"):
        read(name)


def test_csv_names_images_as_it_does_by_a_usual_or_a_named_column(tmp_path: Path) -> None:
    write_images(tmp_path / "data", "a.png", "b.png")
    (tmp_path / "data/usual.csv").write_text("label;file_name\nx;a.png\nx;\nx;b.png\n")
    images = read("data/usual.csv")
    assert [image.name for image in images] == ["a.png", "usual.csv/line00003", "b.png"]
    assert images[0].path == tmp_path / "data/a.png"
    assert images[1].reason == "no path in this row"
    (tmp_path / "data/own.csv").write_text("id,photo\n1,a.png\n")
    assert [image.name for image in read("data/own.csv", column="Photo")] == ["a.png"]
    with pytest.raises(DataError, match=r"no column 'path' \(found: id, photo\).*--column"):
        read("data/own.csv")
    with pytest.raises(DataError, match=r"no column 'foto'.*'photo'"):
        read("data/own.csv", column="foto")
    with pytest.raises(ConfigError, match=r"--column x .*data has no columns"):
        read("data", column="x")


def test_parquet_yields_the_bytes_of_each_row_without_unpacking(tmp_path: Path) -> None:
    rows = [(encode_noise(0), "a.png", 0), (None, None, 1), (encode_noise(1, "JPEG"), None, 0)]
    write_hub_file(tmp_path / "hub" / "train-00000.parquet", [*rows, (b"", "c.png", 0)])
    images = read("hub")
    assert [image.name.rpartition("/")[2] for image in images] == [
        f"row{number:05}" for number in range(4)
    ]
    assert [image.reason for image in images] == [None, "no image in this row", None, "empty file"]
    assert [image.data for image in images] == [rows[0][0], None, rows[2][0], None]
    assert open_stream([Path("hub")]).count() == 4


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_tar_yields_images_of_samples_by_their_member(tmp_path: Path, suffix: str) -> None:
    members = {
        "0001.left.jpg": encode_noise(0, "JPEG"), "0001.right.PNG": encode_noise(1),
        "0001.cls": b"3", "0001.json": b"{}", "sub/0002.webp": encode_noise(2, "WEBP"),
    }  # fmt: skip
    write_tar(tmp_path / f"a.tar{suffix}", members, f"w:{suffix.removeprefix('.')}")
    images = read(f"a.tar{suffix}")
    names = ["0001.left.jpg", "0001.right.PNG", "sub/0002.webp"]
    assert [image.name for image in images] == [f"a.tar{suffix}/{name}" for name in names]
    assert get_pixels(images[1]) == np.asarray(create_noise(seed=1)).tolist()


def test_tars_are_read_by_braces_patterns_and_folders(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"x-{number:03}.tar", {f"{number}.png": encode_noise(number)})
    expected = [f"x-{number:03}.tar/{number}.png" for number in range(3)]
    assert [image.name for image in read("x-{000..002}.tar")] == expected
    assert [image.name for image in read("x-*.tar")] == expected
    assert [image.container for image in read(tmp_path)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"x-003\.tar does not exist"):
        read("x-{000..003}.tar")


def test_expand_braces_counts_with_zeros_and_lists_choices() -> None:
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{x,y}{1..2}") == ["x1", "x2", "y1", "y2"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_truncated_tar_keeps_the_images_before_and_says_so(tmp_path: Path) -> None:
    members = {f"{number}.png": encode_noise(number) for number in range(3)}
    file = write_tar(tmp_path / "a.tar", members)
    data = file.read_bytes()
    file.write_bytes(data[: data.index(members["2.png"][:60]) + 50])
    images = read(file)
    assert [image.reason is None for image in images] == [True, True, False]
    assert "2 images before" in str(images[2].reason)
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    assert [str(image.reason).partition(" (")[0] for image in read("b.tar")] == [
        "damaged or incomplete tar file"
    ]


def test_tar_that_cannot_be_opened_is_an_image_of_its_container_with_the_reason(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "0.tar", {"0.png": encode_noise(0)})
    (tmp_path / "1.tar").mkdir()
    images = read("{0..1}.tar")
    assert [(image.name, image.container) for image in images] == [("0.tar/0.png", 0), ("1.tar", 1)]
    assert images[1].reason == "not readable (Is a directory)"
    assert [image.is_io_error for image in images] == [False, True]
    assert len(read("{1..1}.tar")) == 1


def test_tar_without_images_and_missing_inputs_are_errors(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.txt": b"1"})
    with pytest.raises(DataError, match=r"a\.tar contains no image"):
        read("a.tar")
    with pytest.raises(DataError, match="gone does not exist"):
        read("gone")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt lists no path"):
        read("empty.txt")


@pytest.mark.parametrize("pipe_type", [io.BytesIO, Pipe])
def test_standard_input_is_recognised_by_its_content(
    tmp_path: Path, pipe_type: type[io.BytesIO]
) -> None:
    image = encode_noise(0)
    (only,) = PipedStream(pipe_type(image)).iterate()
    assert (only.name, only.data) == ("-", image)
    paths = list(PipedStream(pipe_type(b"a.png\nb.png\n")).iterate())
    assert [one.path for one in paths] == [Path("a.png"), Path("b.png")]
    zero = list(PipedStream(pipe_type(b"a\nb.png\0c.png\0")).iterate())
    assert [one.name for one in zero] == ["a\nb.png", "c.png"]
    tar = write_tar(tmp_path / "a.tar", {"1.png": image}).read_bytes()
    assert [(one.name, one.data) for one in PipedStream(pipe_type(tar)).iterate()] == [
        ("-/1.png", image)
    ]
    with pytest.raises(DataError, match="empty"):
        list(PipedStream(pipe_type(b"")).iterate())
    assert piped_stream.PipedStream.description == "standard input"


def test_several_inputs_follow_each_other_in_their_order(tmp_path: Path) -> None:
    write_images(tmp_path / "new", "a.png")
    write_images(tmp_path, "x.png", "y.png")
    (tmp_path / "list.txt").write_text("z.png\n")
    names = ["y.png", "new", "x.png", "y.png"]
    stream: ImageStream = open_stream(list(map(Path, names)), lists=[Path("list.txt")])
    assert [image.name for image in stream.iterate()] == [
        "y.png", "new/a.png", "x.png", "y.png", "z.png"
    ]  # fmt: skip
    assert isinstance(stream, JoinedStream)
    assert len(stream.streams) == 4, "neighbouring files are one stream"
    assert stream.count() == 5


NESTED = ("a.png", "cat/a.png", "cat/siamese/b.png", "dog/x/y/z/c.png", "train/d.png",
          "val_set/cat/siamese/e.png")  # fmt: skip
CLASS_FOLDERS = ["cat", "cat", "dog", "train", "cat"]


@pytest.mark.parametrize("given", ["new", "./new", "new/../new", "{}/new", "."])
def test_folder_of_an_image_is_its_class_folder_below_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    write_images(tmp_path / "new", *NESTED)
    if given == ".":
        monkeypatch.chdir("new")
    names = [image.folder_name for image in read(given.format(tmp_path))]
    assert names == ["" if given == "." else "new", *CLASS_FOLDERS]


def test_folder_of_an_image_in_a_tar_is_its_class_folder(tmp_path: Path) -> None:
    for file, prefix in (("a.tar", ""), ("b\x07.tar", "./")):
        write_tar(tmp_path / file, {f"{prefix}{name}": encode_noise(1) for name in NESTED})
        names = [image.folder_name for image in read(file)]
        assert names == [Path(read(file)[0].name).parent.name, *CLASS_FOLDERS]
    stream = PipedStream(Pipe((tmp_path / "a.tar").read_bytes()))
    assert [image.folder_name for image in stream.iterate()] == ["-", *CLASS_FOLDERS]


def test_folder_of_a_listed_image_is_the_one_that_it_lies_in(tmp_path: Path) -> None:
    write_images(tmp_path / "new", *NESTED)
    files = [f"new/{name}" for name in NESTED]
    (tmp_path / "list.txt").write_text("\n".join(files))
    (tmp_path / "list.csv").write_text("\n".join(["path", *files]))
    expected = ["new", "cat", "siamese", "z", "train", "siamese"]
    for inputs in (files, ["list.txt"], ["list.csv"]):
        assert [image.folder_name for image in read(*inputs)] == expected


def test_fingerprint_changes_with_the_list_of_images(tmp_path: Path) -> None:
    write_images(tmp_path / "new", "a.png", "b.png")
    before = open_stream([Path("new")]).compute_fingerprint()
    assert open_stream([Path("new")]).compute_fingerprint() == before
    write_images(tmp_path / "new", "c.png")
    assert open_stream([Path("new")]).compute_fingerprint() != before
    with pytest.raises(DataError, match="--list"):
        PipedStream(io.BytesIO()).compute_fingerprint()


@pytest.mark.parametrize("suffix", ["", ".csv", ".parquet", ".tar", ".jpg"])
def test_too_long_paths_do_not_exist(suffix: str) -> None:
    path = Path("x" * 300 + suffix)
    with pytest.raises(DataError, match="does not exist"):
        open_stream([path])
    with pytest.raises(DataError, match="does not exist"):
        open_stream([], lists=[path])
