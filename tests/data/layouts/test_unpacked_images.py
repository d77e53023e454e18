"""Tests of the folder into which images of Parquet files are unpacked."""

import shutil
import signal
from pathlib import Path

import pytest

from finetune.data.file_listing import is_output_folder
from finetune.data.layouts.table_options import TableOptions
from finetune.data.scan import scan
from finetune.errors import StorageError
from tests.support.child_commands import scan_in_child, start_scans
from tests.support.helpers import create_noise, mount_tiny_disk
from tests.support.parquet import encode, encode_noise, write_hub_file

ROWS = [(encode_noise(number), f"{number}.png", number % 3) for number in range(12)]


@pytest.fixture(name="cache")
def _set_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/pixels/parquet"


def list_folders(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.is_dir())


@pytest.mark.parametrize("name", ["row00000_0.png", "row00007_7.png", ""])
@pytest.mark.parametrize("is_cut", [True, False])
def test_incomplete_folder_is_written_again(
    tmp_path: Path, cache: Path, name: str, *, is_cut: bool
) -> None:
    file = write_hub_file(tmp_path / "a.parquet", ROWS)
    result = scan(file)
    damaged = result.root / "a.parquet" / name
    if damaged.is_dir():
        damaged = result.root / "parquet-images.json"
    if is_cut:
        damaged.write_bytes(damaged.read_bytes()[:10])
    else:
        damaged.unlink()
    assert scan(file) == result
    contents = [(result.root / sample.path).read_bytes() for sample in result.samples]
    assert contents == [row[0] for row in ROWS]
    assert list_folders(cache) == [result.root.name]


@pytest.mark.runs
def test_changed_file_gets_another_folder_and_the_old_one_goes(tmp_path: Path, cache: Path) -> None:
    file = write_hub_file(tmp_path / "a.parquet", ROWS)
    assert scan_in_child(file, tmp_path / "cache") == 0
    (first,) = list_folders(cache)
    write_hub_file(file, ROWS[:5])
    assert scan_in_child(file, tmp_path / "cache") == 0
    (second,) = list_folders(cache)
    assert first != second


def test_folder_in_use_stays_until_its_process_ends(tmp_path: Path, cache: Path) -> None:
    file = write_hub_file(tmp_path / "a.parquet", ROWS)
    used = scan(file).root
    write_hub_file(file, ROWS[:5])
    assert scan_in_child(file, tmp_path / "cache") == 0
    assert len(list_folders(cache)) == 2
    assert len(list(used.rglob("*.png"))) == len(ROWS)


def test_other_files_keep_their_folders(tmp_path: Path, cache: Path) -> None:
    for name in ("x/a.parquet", "y/a.parquet", "b.parquet"):
        write_hub_file(tmp_path / name, ROWS)
        assert scan_in_child(tmp_path / name, tmp_path / "cache") == 0
    assert [name.partition("-")[0] for name in list_folders(cache)] == ["a", "a", "b"]


@pytest.mark.parametrize("after", [0, 7])
def test_killed_process_leaves_nothing_that_is_used(
    tmp_path: Path, cache: Path, after: int
) -> None:
    file = write_hub_file(tmp_path / "a.parquet", ROWS)
    code = scan_in_child(file, tmp_path / "cache", kill_after=after)
    assert code == -signal.SIGKILL
    assert len(list(cache.rglob("*.png"))) == after
    result = scan(file)
    assert len(result.samples) == len(ROWS)
    assert list_folders(cache) == [result.root.name], "the rest of the killed process is removed"


def test_two_processes_at_once_write_one_folder(tmp_path: Path, cache: Path) -> None:
    file = write_hub_file(tmp_path / "a.parquet", ROWS * 20)
    assert start_scans(file, tmp_path / "cache", count=2) == [0, 0]
    (folder,) = list_folders(cache)
    result = scan(file)
    assert (result.root.name, len(result.samples)) == (folder, 20 * len(ROWS))


def test_full_disk_is_told_with_what_is_needed(tmp_path: Path) -> None:
    big = [(encode(create_noise(seed=n, width=400, height=400)), None, n % 3) for n in range(6)]
    file = write_hub_file(tmp_path / "a.parquet", big)
    with mount_tiny_disk(tmp_path / "disk", size="1M") as disk:
        options = TableOptions(cache=str(disk))
        with pytest.raises(StorageError, match=r"need 2\.9 MB in .*/disk/parquet.* data\.cache=P"):
            scan(file, tables=options)
        assert not list(disk.rglob("*.png"))


def test_unwritable_cache_is_named(tmp_path: Path) -> None:
    file = write_hub_file(tmp_path / "a.parquet", ROWS)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/parquet.* FINETUNE_CACHE"):
        scan(file, tables=TableOptions(cache=str(tmp_path / "file")))


def test_cache_among_the_data_is_passed_over(tmp_path: Path) -> None:
    """Unpacked images beside the Parquet files do not turn these into a folder of images."""
    root = tmp_path / "data"
    write_hub_file(root / "train.parquet", ROWS)
    options = TableOptions(cache=str(root / "cache"))
    result = scan(root, tables=options)
    assert is_output_folder(result.root)
    assert scan(root, tables=options) == result
    shutil.rmtree(root / "cache")
    assert scan(root, tables=options) == result


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("../../etc/x y.png", "row00000_x-y.png"),
        (r"C:\photos\a.PNG", "row00000_a.png"),
        ("photo.jpg", "row00000_photo.png"),
        ("/abs/üñ.png", "row00000_üñ.png"),
        ("." * 30 + "/..", "row00000.png"),
        ("a" * 300 + ".png", f"row00000_{'a' * 60}.png"),
        ("", "row00000.png"),
    ],
)
def test_names_of_files_are_safe(tmp_path: Path, cache: Path, given: str, expected: str) -> None:
    file = write_hub_file(tmp_path / "a.parquet", [(encode_noise(1), given, 0)])
    result = scan(file)
    assert [sample.path for sample in result.samples] == [f"a.parquet/{expected}"]
    assert cache in (result.root / expected).resolve().parents
