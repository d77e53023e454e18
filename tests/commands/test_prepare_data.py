"""Datasets are scanned, audited and split; ``data.leakage`` resolves leaked images."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from finetune.commands.audit_notes import summarise_audit
from finetune.commands.prepare_data import RunData, read_data
from finetune.config.load import build_config
from finetune.errors import ConfigError, DataError
from finetune.types import Split
from tests.support.helpers import RecordingReporter
from tests.support.pictures import create_scene, write_jpeg


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return splits of two classes; a training image is in validation, too; never change it."""
    root = tmp_path_factory.mktemp("leaky") / "leaky"
    for label in ("ant", "bee"):
        for split, count in (("train", 5), ("val", 3)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                seed = number + 10 * (label == "bee") + 100 * (split == "val")
                write_jpeg(root / split / label / f"{number}.jpg", create_scene(seed))
    write_jpeg(root / "val/ant/leak.jpg", create_scene(2), quality=60)
    return root


def read(data: Path, **assignments: object) -> tuple[RunData, RecordingReporter]:
    recorder = RecordingReporter()
    config = build_config({"data": {"path": str(data)}}, assignments=assignments)
    return read_data(config, data, reporter=recorder), recorder


def paths_of(data: RunData, split: Split) -> set[str]:
    return {sample.path for sample in data.manifest.get_samples(split)}


LEAK = re.compile(r"1 of 7 val images .* in train .*val/ant/leak\.jpg.*train/ant/2\.jpg")


def test_read_data_default_warns_of_leaks(leaky: Path) -> None:
    data, recorder = read(leaky)
    assert len(recorder.warnings) == 1
    assert LEAK.match(recorder.warnings[0])
    assert "data.leakage=drop or move" in recorder.warnings[0]
    assert data.rejected == []
    assert len(data.manifest.samples) == 17
    assert [group.conflicts for group in data.audit.duplicates or ()] == [("splits",)]
    assert len(recorder.notes) == 1
    assert re.search(rf"\b1 .*\b2 images.*finetune inspect {leaky}$", recorder.notes[0])


def test_read_data_split_that_leaks_as_a_whole_is_named(leaky: Path, tmp_path: Path) -> None:
    root = tmp_path / "leaky"
    shutil.copytree(leaky, root)
    for label in ("ant", "bee"):
        (root / "test" / label).mkdir(parents=True)
        shutil.copyfile(root / f"val/{label}/0.jpg", root / f"test/{label}/again.jpg")
    _, recorder = read(root)
    assert re.search(r"without them .* for val; no test image ", recorder.warnings[0])
    (root / "val/ant/leak.jpg").unlink()
    _, recorder = read(root)
    assert re.search(r"\. No test image .*data\.leakage", recorder.warnings[0])


def test_read_data_drop_lists_dropped_images(leaky: Path) -> None:
    data, recorder = read(leaky, **{"data.leakage": "drop"})
    assert [entry.path for entry in data.rejected] == ["train/ant/2.jpg"]
    assert "data.leakage=drop keeps" in data.rejected[0].reason
    assert "val/ant/leak.jpg" in paths_of(data, Split.VAL)
    assert "train/ant/2.jpg" not in paths_of(data, Split.TRAIN)
    assert recorder.warnings == []
    assert LEAK.match(recorder.notes[-1])
    assert re.search(r"\b1 image \(data\.leakage=drop\)\.$", recorder.notes[-1])


def test_read_data_move_adds_leaked_images_to_train(leaky: Path) -> None:
    data, recorder = read(leaky, **{"data.leakage": "move"})
    assert data.rejected == []
    assert paths_of(data, Split.TRAIN) >= {"train/ant/2.jpg", "val/ant/leak.jpg"}
    assert len(paths_of(data, Split.VAL)) == 6
    assert re.search(r" train \(data\.leakage=move\)\.$", recorder.notes[-1])


def test_read_data_error_raises_data_error(leaky: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.leakage=error: 1 of 7 val images .*data\.leakage to drop"
    ):
        read(leaky, **{"data.leakage": "error"})


def test_read_data_ignore_searches_no_duplicates(
    leaky: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("duplicates must not be searched")

    monkeypatch.setattr("finetune.audit.duplicate_cache.find_duplicates", fail)
    data, recorder = read(leaky, **{"data.leakage": "ignore"})
    assert recorder.warnings == []
    assert len(recorder.notes) == 1
    assert "data.leakage=ignore" in recorder.notes[0]
    assert data.audit.duplicates is None
    assert data.audit.to_json()["duplicates"] is None
    assert len(data.manifest.samples) == 17


def test_read_data_unknown_policy_raises_config_error(leaky: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.leakage"):
        read(leaky, **{"data.leakage": "mend"})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["warn", "error"])
def test_read_data_drawn_split_keeps_duplicates_together(
    leaky: Path, tmp_path: Path, seed: int, policy: str
) -> None:
    root = tmp_path / "flat"
    for label in ("ant", "bee"):
        shutil.copytree(leaky / "train" / label, root / label)
        for number in range(4):
            picture = create_scene(number + 10 * (label == "bee"))
            write_jpeg(root / label / f"again {number}.jpg", picture, quality=60)
    data, recorder = read(root, seed=seed, **{"data.leakage": policy, "data.val_fraction": 0.3})
    assert recorder.warnings == []
    assert len(data.audit.duplicates or ()) == 8
    held_out = {sample.duplicate_group for sample in data.manifest.get_samples(Split.VAL)} - {""}
    assert held_out
    assert held_out.isdisjoint(
        sample.duplicate_group for sample in data.manifest.get_samples(Split.TRAIN)
    )


def test_summarise_audit_is_one_line(leaky: Path, tmp_path: Path) -> None:
    data, _ = read(leaky)
    root = tmp_path / "my flat"
    shutil.copytree(leaky / "train", root)
    shutil.copyfile(root / "ant/0.jpg", root / "bee/wrong.jpg")
    shutil.copyfile(root / "ant/1.jpg", root / "ant/again.jpg")
    data, recorder = read(root)
    assert len(recorder.notes) == 1
    pattern = rf"\b2 .*\b4 images.*\b1 across classes.*finetune inspect '{root}'$"
    assert re.search(pattern, recorder.notes[0])
    assert summarise_audit(data.audit, root) == recorder.notes
    wrong = {s.split for s in data.manifest.samples if s.path in ("ant/0.jpg", "bee/wrong.jpg")}
    assert wrong == {Split.TRAIN}


def test_read_data_findings_name_a_command_that_reads_the_same_splits(
    leaky: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(leaky, tmp_path / "data"))
    for name, other in (("train", "day"), ("val", "night")):
        (data / name).rename(data / other)
    _, recorder = read(data, **{"data.splits": "day=train,night=val"})
    assert recorder.notes[0] == "Split folders: day is train, night is val."
    assert recorder.notes[1].endswith(f"finetune inspect {data} data.splits=day=train,night=val")


def test_read_data_csv_leaks_are_found(leaky: Path, tmp_path: Path) -> None:
    rows = [
        (str(path), path.parent.name, path.parents[1].name) for path in sorted(leaky.rglob("*.jpg"))
    ]
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    data, recorder = read(tmp_path / "list.csv", **{"data.leakage": "drop"})
    assert [Path(entry.path).name for entry in data.rejected] == ["2.jpg"]
    assert recorder.warnings == []


@pytest.mark.parametrize("policy", ["warn", "drop"])
def test_read_data_duplicates_across_groups_are_leaks(
    leaky: Path, tmp_path: Path, policy: str
) -> None:
    rows = [("path", "label", "group")]
    for label in ("ant", "bee"):
        rows += [(str(leaky / f"train/{label}/{n}.jpg"), label, f"{label}{n}") for n in range(5)]
    for number in range(
        4
    ):  # ant 0 = ant 1 = …: a duplicate of each is in the group of the next one
        again = tmp_path / f"{number}.jpg"
        shutil.copyfile(leaky / f"train/ant/{number}.jpg", again)
        rows.append((str(again), "ant", f"ant{number + 1}"))
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    data, recorder = read(tmp_path / "list.csv", **{"data.leakage": policy})
    assert (len(recorder.warnings), len(data.rejected) > 0) == (policy == "warn", policy == "drop")
    assert "have duplicates in train" in (recorder.warnings or recorder.notes)[-1]


def test_read_data_fraction_of_a_given_split_raises_config_error(leaky: Path) -> None:
    for key in ("data.val_fraction", "data.test_fraction"):
        with pytest.raises(ConfigError, match=rf"{key} .*train/val"):
            read(leaky, **{key: 0.1})


def test_read_data_warns_of_missing_classes(leaky: Path, tmp_path: Path) -> None:
    root = tmp_path / "gaps"
    shutil.copytree(leaky, root)
    shutil.rmtree(root / "val/bee")
    _, recorder = read(root, **{"data.leakage": "ignore"})
    assert len(recorder.warnings) == 1
    assert re.search(r"1 of 2 classes .* val image \('bee': 5 images\)", recorder.warnings[0])


def test_read_data_split_seed_alone_decides_the_split(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    for number in range(20):
        folder = root / ("ant" if number % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        write_jpeg(folder / f"{number}.jpg", create_scene(number))
    splits = [
        paths_of(read(root, seed=seed, **{"data.split_seed": split_seed})[0], Split.VAL)
        for seed, split_seed in ((0, None), (1, None), (1, 0), (0, 1))
    ]
    assert splits[0] == splits[2] != splits[1] == splits[3]
