"""Audits write their own folder and change nothing else."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.commands.inspect.inspect import InspectResult, inspect
from finetune.commands.prepare_data import read_data
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError, DataError, RunFolderError, StorageError
from finetune.types import Reporter
from tests.support.helpers import RecordingReporter, list_names, list_tree, run_python
from tests.support.pictures import create_scene, write_jpeg


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return train and val folders of two classes with duplicates of all kinds; never change it."""
    root = tmp_path_factory.mktemp("garden") / "garden"
    for label in ("ant", "bee"):
        for split, count in (("train", 6), ("val", 3)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                seed = number + 10 * (label == "bee") + 100 * (split == "val")
                write_jpeg(root / split / label / f"{number}.jpg", create_scene(seed))
    shutil.copyfile(root / "train/ant/0.jpg", root / "val/ant/leak.jpg")
    shutil.copyfile(root / "train/ant/1.jpg", root / "train/bee/wrong.jpg")
    write_jpeg(root / "train/bee/again.jpg", create_scene(12), quality=50)
    Image.new("RGB", (160, 120)).save(root / "train/ant/black.png")
    (root / "train/ant/broken.jpg").write_bytes(b"")
    return root


def run_inspect(data: Path, output: Path, **assignments: object) -> InspectResult:
    tree = {"data": {"path": str(data)}, "output": str(output)}
    return inspect(build_config(tree, assignments=assignments), reporter=RecordingReporter())


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return mode, modification time and size of a folder and of everything below it."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        info = path.lstat()
        found[str(path)] = (info.st_mode, info.st_mtime_ns, info.st_size)
    return found


def test_inspect_writes_json_csv_and_pictures(garden: Path, tmp_path: Path) -> None:
    result = run_inspect(garden, tmp_path / "audit")
    assert list_names(tmp_path) == ["audit"]
    assert list_tree(tmp_path / "audit") == [
        "audit.csv", "audit.json", "duplicates", "duplicates/0001.jpg", "duplicates/0002.jpg",
        "duplicates/0003.jpg",
    ]  # fmt: skip
    tree = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))
    assert tree == result.audit.to_json()
    assert tree["class_counts"] == {"train": {"ant": 7, "bee": 8}, "val": {"ant": 4, "bee": 3}}
    groups = [(group["kind"], group["conflicts"], group["paths"]) for group in tree["duplicates"]]
    assert sorted(groups) == [
        ("exact", ["classes"], ["train/ant/1.jpg", "train/bee/wrong.jpg"]),
        ("exact", ["splits"], ["train/ant/0.jpg", "val/ant/leak.jpg"]),
        ("near", [], ["train/bee/2.jpg", "train/bee/again.jpg"]),
    ]
    assert tree["unreadable"] == [{"path": "train/ant/broken.jpg", "reason": "empty file"}]
    assert [(image["path"], image["kind"]) for image in tree["suspicious_images"]] == [
        ("train/ant/black.png", "blank")
    ]
    assert "data.leakage" in [one["option"] for one in tree["advice"]]
    with (tmp_path / "audit/audit.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows if row["group"] == "1"] == [
        "train/ant/0.jpg", "val/ant/leak.jpg",
    ]  # fmt: skip
    with Image.open(tmp_path / "audit/duplicates/0001.jpg") as picture:
        assert picture.height == 188
    assert (tmp_path / "audit/audit.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_inspect_does_not_change_the_images(garden: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(garden, data)
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state_of(data)
    try:
        run_inspect(data, tmp_path / "audit")
        run_inspect(data, tmp_path / "audit", **{"data.cache": "off"})
        assert state_of(data) == before
    finally:
        for path in (data, *data.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_inspect_again_replaces_the_audit(garden: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(garden, data)
    run_inspect(data, tmp_path / "audit")
    (data / "val/ant/leak.jpg").unlink()
    (data / "train/bee/wrong.jpg").unlink()
    (data / "train/bee/again.jpg").unlink()
    result = run_inspect(data, tmp_path / "audit")
    assert result.audit.duplicates == ()
    assert list_tree(tmp_path / "audit") == ["audit.csv", "audit.json"]


@pytest.mark.parametrize("name", ["audit.txt", "duplicates/mine.jpg", ".hidden"])
def test_inspect_output_with_other_files_raises_run_folder_error(
    photos: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "audit"
    (output / name).parent.mkdir(parents=True)
    run_inspect(photos, output) if name != "duplicates/mine.jpg" else None
    (output / name).write_text("mine")
    with pytest.raises(RunFolderError, match=r"audit exists .* --output"):
        run_inspect(photos, output)
    assert (output / name).read_text() == "mine"


def test_inspect_output_of_version_0_1_is_replaced(garden: Path, tmp_path: Path) -> None:
    run_inspect(garden, tmp_path / "audit")
    (tmp_path / "audit" / "duplicates").rename(tmp_path / "audit" / "copies")
    run_inspect(garden, tmp_path / "audit")
    assert list_names(tmp_path / "audit") == ["audit.csv", "audit.json", "duplicates"]


def test_inspect_output_is_a_file_raises_run_folder_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("mine")
    with pytest.raises(RunFolderError, match=r"audit exists .* --output"):
        run_inspect(photos, tmp_path / "audit")


def test_inspect_output_of_other_data_raises_run_folder_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        shutil.copytree(photos, tmp_path / name / "photos")
    monkeypatch.chdir(tmp_path)
    first = inspect(build_config({"data": {"path": "one/photos"}}))
    before = state_of(first.output)
    with pytest.raises(RunFolderError, match=r"one/photos\. .*--output"):
        inspect(build_config({"data": {"path": "other/photos"}}))
    assert state_of(first.output) == before
    inspect(build_config({"data": {"path": str(tmp_path / "one/photos")}}))
    assert state_of(first.output) != before


@pytest.mark.parametrize("place", ["/proc/audit", "file/audit"])
def test_inspect_unwritable_output_raises_before_the_scan(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("finetune.commands.inspect.inspect.scan_and_audit", None)
    with pytest.raises(StorageError, match=r"audit: .*--output"):
        run_inspect(photos, tmp_path / place)


def test_inspect_interrupted_keeps_the_earlier_audit(
    garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_inspect(garden, tmp_path / "audit")
    before = state_of(tmp_path / "audit")

    def fail(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.commands.inspect.inspect.draw_duplicates", fail)
    with pytest.raises(KeyboardInterrupt):
        run_inspect(garden, tmp_path / "audit")
    assert state_of(tmp_path / "audit") == before
    assert list_names(tmp_path) == ["audit"]


@pytest.mark.parametrize("key", ["model.backbone", "model.weights"])
def test_inspect_default_backbone_named_explicitly_is_used(
    garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    used: list[str] = []

    def record(config: Config, dataset: Any, reporter: Reporter) -> tuple[Any, None, None]:
        used.append(config.model.backbone)
        return dataset, None, None

    monkeypatch.setattr("finetune.commands.inspect.inspect._run_backbone_audit", record)
    default = {"model.backbone": "resnet50", "model.weights": "hub"}[key]
    run_inspect(garden, tmp_path / "audit", **{key: default})
    assert used == ["resnet50"]
    run_inspect(garden, tmp_path / "other")
    assert used == ["resnet50"]


def test_inspect_output_over_the_images_raises_run_folder_error(
    garden: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(garden, data)
    before = list_tree(data)
    with pytest.raises(RunFolderError, match=r"data .*--output"):
        run_inspect(data, data)
    assert list_tree(data) == before


@pytest.mark.parametrize("place", ["audit", "runs/audit", "train/audit", "train/ant/audit"])
def test_inspect_output_among_the_images_is_passed_over_by_the_next_audit(
    garden: Path, tmp_path: Path, place: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(garden, data)
    first, second = (run_inspect(data, data / place).audit for _ in range(2))
    assert list((data / place / "duplicates").iterdir())
    assert second.class_counts == first.class_counts
    assert second.unreadable == first.unreadable
    shown = place.partition("/")[0] if place.startswith("runs") else place
    assert [*first.layout, *second.layout] == [f"Passed over {shown}, written by finetune."]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("photos.v2", "audit-photos.v2"), ("photos", "audit-photos"), ("list.csv", "audit-list")],
)
def test_inspect_default_output_is_named_after_the_data(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    data = tmp_path / "in" / name
    data.parent.mkdir()
    if name.endswith(".csv"):
        names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(4)]
        lines = [f"{photos / path},{path[:3]}" for path in names]
        data.write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    else:
        shutil.copytree(photos, data)
    monkeypatch.chdir(tmp_path)
    result = inspect(build_config({"data": {"path": str(data)}}))
    assert result.output == Path("runs") / expected
    assert (tmp_path / "runs" / expected / "audit.json").is_file()


def test_inspect_class_without_image_counts_zero(garden: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(garden, data)
    (data / "train/empty").mkdir()
    (data / "train/cow").mkdir()
    (data / "train/cow/broken.jpg").write_bytes(b"no")
    result = run_inspect(data, tmp_path / "audit")
    assert result.audit.class_counts["train"] == {"ant": 7, "bee": 8, "cow": 0, "empty": 0}
    assert result.audit.under_represented_classes[:2] == ["cow", "empty"]
    assert "train/cow/broken.jpg" in [entry.path for entry in result.audit.unreadable]
    with pytest.raises(DataError, match="empty contains no image"):
        read_data(build_config({}), data, reporter=RecordingReporter())
    for path in data.rglob("*.*"):
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="No image of class 'ant' can be read"):
        run_inspect(data, tmp_path / "audit")


def test_inspect_images_over_max_megapixels_are_unreadable(garden: Path, tmp_path: Path) -> None:
    write_jpeg(tmp_path / "large.jpg", create_scene(50, width=400, height=300))
    data = tmp_path / "data"
    shutil.copytree(garden, data)
    shutil.copyfile(tmp_path / "large.jpg", data / "val/bee/large.jpg")
    result = run_inspect(data, tmp_path / "audit", **{"data.max_megapixels": 0.1})
    assert [entry.path for entry in result.audit.unreadable] == [
        "train/ant/broken.jpg", "val/bee/large.jpg",
    ]  # fmt: skip
    assert "too large: 400x300" in result.audit.unreadable[1].reason


@pytest.mark.parametrize("split", ["val", "test"])
def test_inspect_csv_without_training_split(photos: Path, tmp_path: Path, split: str) -> None:
    lines = [f"{photos}/{kind}/{n}.png,{kind},{split}" for kind in ("cat", "dog") for n in (0, 1)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    result = run_inspect(tmp_path / "list.csv", tmp_path / "audit")
    assert result.audit.class_counts == {split: {"cat": 2, "dog": 2}}
    assert result.audit.advice == [], "there are no training images"


def test_inspect_names_the_classes_that_stop_fit(photos: Path, tmp_path: Path) -> None:
    def find_reason(**keys: Any) -> str | None:
        result = run_inspect(photos, tmp_path / "audit", **keys)
        found = {one["option"]: one["reason"] for one in result.audit.advice}
        return found.get("data.min_images_per_class")

    assert find_reason() is None
    (photos / "owl").mkdir()
    write_jpeg(photos / "owl" / "1.jpg", create_scene(7))
    assert find_reason() == "too few images to hold some out, which stops fit: owl (1)"
    write_jpeg(photos / "owl" / "2.jpg", create_scene(8))
    assert find_reason() is None
    reason = find_reason(**{"data.test_fraction": 0.2})
    assert reason is not None
    assert reason.endswith("owl (2)")


def test_inspect_advice_subtracts_held_out_images(photos: Path, tmp_path: Path) -> None:
    result = run_inspect(photos, tmp_path / "audit", **{"data.val_fraction": 0.5})
    advice = {one["option"]: one for one in result.audit.advice}
    assert advice["--image-size"]["value"] == "64"
    assert "5 training images" in advice["--batch-size"]["reason"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.leakage", "drop"),
        ("data.image_size", 64),
        ("data.num_workers", 1),
        ("data.min_images_per_class", 2),
        ("data.cache_shorter_side", 64),
        ("seed", 3),
        ("trainer.epochs", 3),
    ],
)
def test_inspect_unused_key_raises_config_error(
    photos: Path, tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=rf"{key} .* --backbone"):
        run_inspect(photos, tmp_path / "audit", **{key: value})
    assert not (tmp_path / "audit").exists()


def test_inspect_missing_data_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run_inspect(tmp_path / "gone", tmp_path / "audit")
    with pytest.raises(ConfigError, match="finetune fit"):
        inspect(build_config({}))
    assert list_names(tmp_path) == []


def test_inspect_imports_no_torch(garden: Path, tmp_path: Path) -> None:
    code = """
import sys
from finetune.cli.main import run
code = run(["inspect", sys.argv[1], "--output", sys.argv[2], "--json"])
heavy = {"torch", "timm", "pytorch_lightning", "sklearn", "albumentations"} & set(sys.modules)
assert not heavy, heavy
assert code == 0
"""
    tree = json.loads(run_python(code, garden, tmp_path / "audit"))
    assert tree["num_images"] == 22
