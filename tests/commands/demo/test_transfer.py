"""Transfer experiment on made digits: its table, its files and its continuation."""

import csv
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from finetune.commands.demo.transfer import METHODS, run_transfer
from finetune.commands.demo.transfer_images import choose_sizes, select_images, split_test
from finetune.commands.demo.transfer_result import TransferResult, TransferSpec
from finetune.config.load import read_config_file
from finetune.data.scan import scan
from finetune.errors import ConfigError, DataError, RunFolderError
from finetune.types import Reporter, Sample

SETTINGS: dict[str, Any] = {
    "data.image_size": 32, "data.num_workers": 0, "trainer.epochs": 1,
    "trainer.precision": "32-true", "trainer.accelerator": "cpu",
}  # fmt: skip


class Notes(Reporter):
    """Reporter that keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def write_stripes(root: Path, *, count: int, num_classes: int = 4) -> Path:
    """Write classes of noisy stripes whose width is the class."""
    rng = np.random.default_rng(0)
    for label in range(num_classes):
        folder = root / str(label)
        folder.mkdir(parents=True)
        for number in range(count):
            stripes = 255 * (np.arange(24) // (label + 1) % 2)
            pixels = np.clip(stripes[None] + rng.normal(0, 40, (24, 24)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes", count=15)


@pytest.fixture(scope="module")
def spec(stripes: Path) -> TransferSpec:
    return TransferSpec(stripes, "0-1:2-3", "test_resnet", (6, 40), SETTINGS)


@pytest.fixture(scope="module")
def result(spec: TransferSpec, tmp_path_factory: pytest.TempPathFactory) -> TransferResult:
    return run_transfer(spec, tmp_path_factory.mktemp("runs") / "transfer")


@pytest.mark.slow
def test_every_method_runs_on_every_number_of_images(result: TransferResult) -> None:
    cells = [(row.images_per_class, row.method) for row in result.rows]
    assert cells == [(size, method) for size in (6, 12) for method in METHODS]
    assert result.num_test_images == 6
    assert {row.num_images for row in result.rows} == {12, 24}


@pytest.mark.slow
def test_runs_differ_in_weights_and_depth_only(result: TransferResult) -> None:
    configs = {
        row.method: read_config_file(Path(row.run_dir) / "config.yaml") for row in result.rows
    }
    weights = {method: config["model"]["weights"] for method, config in configs.items()}
    assert weights.pop("from scratch") == "random"
    assert set(weights.values()) == {str(result.folder / "source" / "bundle")}
    assert configs["frozen features"]["unfreeze"]["name"] == "linear_probe"
    assert configs["last group"]["unfreeze"]["params"] == {"depths": {"0": 2}}
    assert len({str(config["augment"]) for config in configs.values()}) == 1
    assert len({config["data"]["path"] for config in configs.values()}) == 1


@pytest.mark.slow
def test_files_hold_the_table_and_the_chart(result: TransferResult) -> None:
    with (result.folder / "transfer.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["accuracy"]) for row in rows] == [r.metrics["accuracy"] for r in result.rows]
    texts = [e.text for e in ElementTree.parse(result.folder / "transfer.svg").iter()]
    assert {*METHODS, "6", "12"} <= set(texts)


@pytest.mark.slow
def test_experiment_continues_in_its_folder_without_training_again(
    spec: TransferSpec, result: TransferResult
) -> None:
    checkpoint = result.folder / "target-6-all-groups" / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    notes = Notes()
    again = run_transfer(spec, result.folder, reporter=notes)
    assert [row.metrics for row in again.rows] == [row.metrics for row in result.rows]
    assert checkpoint.stat().st_mtime_ns == before
    assert sum(note.startswith("[") for note in notes.notes) == 1 + 2 * len(METHODS)


@pytest.mark.slow
def test_folder_of_another_experiment_is_refused(stripes: Path, result: TransferResult) -> None:
    other = TransferSpec(stripes, "0-1:2-3", "test_resnet", (6,), SETTINGS)
    with pytest.raises(RunFolderError, match=r"images_per_class"):
        run_transfer(other, result.folder)


def test_selections_are_nested_and_test_images_are_apart(stripes: Path, spec: TransferSpec) -> None:
    from finetune.commands.demo.class_ranges import TransferClasses

    scanned = scan(stripes)
    classes = TransferClasses(("0", "1"), ("2", "3"))
    pool, test = split_test(scanned.root, scanned.samples, classes, 0)
    small, large = (
        {sample.path for sample in select_images(pool, ("2", "3"), size, 0)} for size in (5, 9)
    )
    assert small < large
    assert (len(small), len(large)) == (10, 18)
    assert not {sample.path for sample in pool} & {sample.path for sample in test}
    assert choose_sizes((3, 9, 12, 500), pool, ("2", "3")) == [3, 9, None]


def test_sizes_depend_on_target_classes_alone() -> None:
    pool = [
        Sample(f"{label}{n}", label)
        for label, count in (("s", 40), ("t", 12))
        for n in range(count)
    ]
    assert choose_sizes((4, 15, 20), pool, ("t",)) == [4, None]


@pytest.mark.parametrize(
    "setting",
    [
        {"model.weights": "random"}, {"unfreeze.name": "linear_probe"}, {"output": "x"},
        {"resume": "never"}, {"data.path": "x"}, {"cross_validation.num_folds": 2},
        {"data.task": "multi_label"}, {"optim.name": "nothing"},
    ],
)  # fmt: skip
def test_settings_of_the_experiment_itself_are_refused_before_any_run(
    setting: dict[str, Any], stripes: Path, tmp_path: Path
) -> None:
    spec = TransferSpec(stripes, "0-1:2-3", "test_resnet", (6,), {**SETTINGS, **setting})
    with pytest.raises(ConfigError, match=next(iter(setting))):
        run_transfer(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_groups_stay_together_in_every_run(tmp_path: Path) -> None:
    data = write_stripes(tmp_path / "stripes", count=24)
    for file in data.rglob("*.png"):
        file.rename(file.with_name(f"video{int(file.stem) // 3}_{file.name}"))
    settings = {**SETTINGS, "data.group_by": "/(video[0-9]+)_"}
    result = run_transfer(
        TransferSpec(data, "0-1:2-3", "test_resnet", (9,), settings), tmp_path / "out"
    )
    for run in (Path(row.run_dir) for row in result.rows):
        splits: dict[tuple[str, str], set[str]] = {}
        with (run / "manifest.csv").open() as stream:
            for row in csv.DictReader(stream):
                assert row["group"].startswith("video")
                splits.setdefault((row["label"], row["group"]), set()).add(row["split"])
        assert {len(parts) for parts in splits.values()} == {1}


def test_class_with_too_few_images_is_named(tmp_path: Path) -> None:
    data = write_stripes(tmp_path / "few", count=15)
    for file in list((data / "3").iterdir())[3:]:
        file.unlink()
    spec = TransferSpec(data, "0-1:2-3", "test_resnet", (6,), SETTINGS)
    with pytest.raises(DataError, match="'3'"):
        run_transfer(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
