"""Parquet files through the commands, compared with the same images in folders."""

import csv
import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import SMALL, Cli
from tests.cli.test_data_layouts import write_data
from tests.support.parquet import encode_noise, write_hub_file, write_table
from tests.support.runs import assert_same_bits, load_weights

pytestmark = pytest.mark.runs

CLASSES = ("ants", "bees")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def pack(folder: Path, root: Path, *, num_files: int = 1) -> Path:
    """Write the images of split folders as the hub lays them out, in the order of a scan."""
    for split in sorted(entry.name for entry in folder.iterdir()):
        rows = [
            (file.read_bytes(), f"{file.parent.name}/{file.name}", CLASSES.index(file.parent.name))
            for file in sorted((folder / split).rglob("*.png"))
        ]
        size = -(-len(rows) // num_files)
        for number in range(num_files):
            part = rows[number * size : (number + 1) * size]
            name = f"data/{split}-{number:05}-of-{num_files:05}.parquet"
            write_hub_file(root / name, part, names=CLASSES)
    return root


def read_manifest(run: Path) -> list[tuple[str, ...]]:
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return [(r["label"], r["split"], r["group"], r["digest"]) for r in csv.DictReader(stream)]


def test_run_on_parquet_is_that_on_the_same_images_in_folders(cli: Cli, tmp_path: Path) -> None:
    """Labels, splits, digests, weights and metrics are equal; every command works afterwards."""
    folder = write_data(tmp_path / "photos", "train", "test")
    hub = pack(folder, tmp_path / "hub", num_files=2)
    runs = {data: tmp_path / "runs" / data.name for data in (folder, hub)}
    for data, run in runs.items():
        cli.ok("fit", data, *SMALL, "--output", run, "--epochs", 2)
    assert read_manifest(runs[hub]) == read_manifest(runs[folder])
    assert_same_bits(load_weights(runs[hub]), load_weights(runs[folder]))
    run = runs[hub]
    metrics = cli.ok("evaluate", runs[folder], "--json").json["metrics"]
    assert cli.ok("evaluate", run, "--json").json["metrics"] == metrics
    file = hub / "data/test-00000-of-00002.parquet"
    assert cli.ok("evaluate", run, file, "--json").json["num_images"] == 6
    table = list(csv.DictReader(io.StringIO(cli.ok("predict", run, hub).out)))
    names = [file.relative_to(hub).as_posix() for file in sorted(hub.rglob("*.parquet"))]
    expected = [f"{name}/row{row:05}" for name in names for row in range(6)]
    assert [row["path"] for row in table] == expected
    audit = cli.ok("inspect", hub, "--output", tmp_path / "audit", "--json").json
    assert audit["num_images"] == 24
    assert audit["class_counts"]["test"] == {"ants": 6, "bees": 6}

    # without the cache, all is unpacked again, and the run goes on
    shutil.rmtree(tmp_path / "cache")
    assert cli.ok("evaluate", run, "--json").json["metrics"] == metrics
    shutil.rmtree(tmp_path / "cache")
    for path in runs.values():
        cli.ok("fit", "--resume", path, "--epochs", 3)
    assert_same_bits(load_weights(run), load_weights(runs[folder]))
    assert torch.isfinite(next(iter(load_weights(run).values()))).all()


def test_rows_that_cannot_be_read_are_listed_by_file_and_row(cli: Cli, tmp_path: Path) -> None:
    rows: list[tuple[bytes | None, str | None, int]] = []
    for number in range(8):
        stream = io.BytesIO()
        Image.effect_noise((32, 32), 60 + number).convert("RGB").save(stream, "JPEG")
        rows.append((stream.getvalue(), f"{number}.jpg", number % 2))
    rows += [(b"no image", "9.jpg", 0), (rows[0][0][:300], "cut.jpg", 1), (None, None, 1)]  # type: ignore[index]
    file = write_hub_file(tmp_path / "photos.parquet", rows, names=CLASSES)
    run = tmp_path / "run"
    output = cli.ok("fit", file, *SMALL, "--output", run)
    assert "3 files left out" in " ".join(output.err.split())
    table = list(csv.DictReader(io.StringIO(cli.ok("predict", run, file).out)))
    assert [row["path"] for row in table if not row["error"]] == [
        f"photos.parquet/row{number:05}" for number in range(8)
    ]
    assert {row["path"] for row in table if row["error"]} == {
        f"photos.parquet/row{number:05}" for number in (8, 9, 10)
    }
    lines = (run / "rejected.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in sorted(lines[1:])] == [
        "photos.parquet/row00008_9.bin",
        "photos.parquet/row00009_cut.jpg",
        "photos.parquet/row00010",
    ]


def test_predict_reads_the_columns_of_the_run(cli: Cli, tmp_path: Path) -> None:
    """Two columns may hold the images; the run says which one."""
    contents = [encode_noise(number) for number in range(8)]
    columns = {"photo": contents, "mask": contents[::-1], "kind": ["ants", "bees"] * 4}
    file = write_table(tmp_path / "a.parquet", columns)
    named = ("data.image_column=photo", "data.label_column=kind")
    run = tmp_path / "run"
    cli.ok("fit", file, *SMALL, *named, "--output", run)
    rows = cli.ok("predict", run, file, "--json").json["predictions"]
    assert [row["path"] for row in rows] == [f"a.parquet/row{n:05}" for n in range(8)]
    alone = cli.fails("predict", run / "bundle", file, code=3)
    assert "several columns" in alone
    assert "Rename the one to read to 'image'." in " ".join(alone.split())


def test_pattern_for_files_trains_and_names_the_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = pack(write_data(tmp_path / "photos", "train"), tmp_path / "hub", num_files=2)
    pattern = hub / "data/train-*.parquet"
    plan = cli.ok("fit", pattern, *SMALL, "--dry-run", "--json").json["plan"]
    assert plan["run_dir"].endswith("-test_resnet-train")
    assert sum(plan["data"]["num_images"].values()) == 12
    cli.ok("inspect", pattern)
    assert (tmp_path / "runs/audit-train/audit.json").is_file()
    files = sorted(hub.glob("data/*"))
    assert "a pattern in quotation marks" in cli.fails("fit", *files, code=2)
