"""What `data.leakage` does with held-out images whose copies are seen before."""

import csv
import shutil
from pathlib import Path

import pytest

from finetune.commands.prepare_data import RunData, read_data, summarise_audit
from finetune.config.load import build_config
from finetune.errors import ConfigError, DataError
from finetune.types import Split
from tests.support.helpers import Recorder
from tests.support.pictures import scene, write_jpeg


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return splits of two classes; one training image is validated on, too; never change it."""
    root = tmp_path_factory.mktemp("leaky") / "leaky"
    for label in ("ant", "bee"):
        for split, count in (("train", 5), ("val", 3)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                seed = number + 10 * (label == "bee") + 100 * (split == "val")
                write_jpeg(root / split / label / f"{number}.jpg", scene(seed))
    write_jpeg(root / "val/ant/leak.jpg", scene(2), quality=60)
    return root


def read(data: Path, **assignments: object) -> tuple[RunData, Recorder]:
    recorder = Recorder()
    config = build_config({"data": {"path": str(data)}}, assignments=assignments)
    return read_data(config, data, reporter=recorder), recorder


def paths_of(data: RunData, split: Split) -> set[str]:
    return {sample.path for sample in data.manifest.get_samples(split)}


LEAK = "1 of 7 val images have copies that are seen before (as val/ant/leak.jpg: train/ant/2.jpg"


def test_by_default_leaks_are_a_warning(leaky: Path) -> None:
    data, said = read(leaky)
    assert len(said.warnings) == 1
    assert said.warnings[0].startswith(LEAK)
    assert "It is measured without them, too; data.leakage=drop or move" in said.warnings[0]
    assert data.rejected == []
    assert len(data.manifest.samples) == 17
    assert [group.conflicts for group in data.audit.duplicates or ()] == [("splits",)]
    assert said.notes == [f"Found 1 group of copies (2 images). See: finetune inspect {leaky}"]


def test_a_split_that_leaks_as_a_whole_is_named(leaky: Path, tmp_path: Path) -> None:
    root = tmp_path / "leaky"
    shutil.copytree(leaky, root)
    for label in ("ant", "bee"):
        (root / "test" / label).mkdir(parents=True)
        shutil.copyfile(root / f"val/{label}/0.jpg", root / f"test/{label}/again.jpg")
    _, said = read(root)
    assert (
        "flatters the model. It is measured without them in val, too; without them no test image "
        "is left to measure; data.leakage=drop"
    ) in said.warnings[0]
    (root / "val/ant/leak.jpg").unlink()
    _, said = read(root)
    assert "the model. Without them no test image is left to measure; data" in said.warnings[0]


def test_dropped_copies_are_listed(leaky: Path) -> None:
    data, said = read(leaky, **{"data.leakage": "drop"})
    assert [entry.path for entry in data.rejected] == ["train/ant/2.jpg"]
    assert "data.leakage=drop keeps" in data.rejected[0].reason
    assert "val/ant/leak.jpg" in paths_of(data, Split.VAL)
    assert "train/ant/2.jpg" not in paths_of(data, Split.TRAIN)
    assert said.warnings == []
    assert said.notes[-1].startswith(LEAK)
    assert said.notes[-1].endswith("1 image is left out (data.leakage=drop).")


def test_moved_copies_train(leaky: Path) -> None:
    data, said = read(leaky, **{"data.leakage": "move"})
    assert data.rejected == []
    assert paths_of(data, Split.TRAIN) >= {"train/ant/2.jpg", "val/ant/leak.jpg"}
    assert len(paths_of(data, Split.VAL)) == 6
    assert said.notes[-1].endswith("all of them train (data.leakage=move).")


def test_leaks_are_an_error_where_they_are_to_be_one(leaky: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 7 val images have copies .*Mend the splits"):
        read(leaky, **{"data.leakage": "error"})


def test_ignored_copies_are_not_looked_for(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("it was not to be called")

    monkeypatch.setattr("finetune.audit.duplicate_cache.find_duplicates", fail)
    data, said = read(leaky, **{"data.leakage": "ignore"})
    assert said.warnings == []
    assert said.notes == ["Copies were not looked for (data.leakage=ignore)."]
    assert data.audit.duplicates is None
    assert data.audit.to_json()["copies"] is None
    assert len(data.manifest.samples) == 17


def test_an_unknown_policy_is_refused(leaky: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.leakage"):
        read(leaky, **{"data.leakage": "mend"})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["warn", "error"])
def test_a_split_that_is_drawn_keeps_copies_together(
    leaky: Path, tmp_path: Path, seed: int, policy: str
) -> None:
    root = tmp_path / "flat"
    for label in ("ant", "bee"):
        shutil.copytree(leaky / "train" / label, root / label)
        for number in range(4):
            seen = scene(number + 10 * (label == "bee"))
            write_jpeg(root / label / f"again {number}.jpg", seen, quality=60)
    data, said = read(root, seed=seed, **{"data.leakage": policy, "data.val_fraction": 0.3})
    assert said.warnings == []
    assert len(data.audit.duplicates or ()) == 8
    held_out = {sample.duplicate_group for sample in data.manifest.get_samples(Split.VAL)} - {""}
    assert held_out
    assert held_out.isdisjoint(
        sample.duplicate_group for sample in data.manifest.get_samples(Split.TRAIN)
    )


def test_what_is_odd_is_said_in_a_line(leaky: Path, tmp_path: Path) -> None:
    data, _ = read(leaky)
    root = tmp_path / "my flat"
    shutil.copytree(leaky / "train", root)
    shutil.copyfile(root / "ant/0.jpg", root / "bee/wrong.jpg")
    shutil.copyfile(root / "ant/1.jpg", root / "ant/again.jpg")
    data, said = read(root)
    assert said.notes == [
        f"Found 2 groups of copies (4 images; 1 across classes: a label is wrong). See: "
        f"finetune inspect '{root}'"
    ]
    assert summarise_audit(data.audit, root) == said.notes
    wrong = {s.split for s in data.manifest.samples if s.path in ("ant/0.jpg", "bee/wrong.jpg")}
    assert wrong == {Split.TRAIN}


def test_each_image_of_a_csv_is_looked_at(leaky: Path, tmp_path: Path) -> None:
    rows = [
        (str(path), path.parent.name, path.parents[1].name) for path in sorted(leaky.rglob("*.jpg"))
    ]
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    data, said = read(tmp_path / "list.csv", **{"data.leakage": "drop"})
    assert [Path(entry.path).name for entry in data.rejected] == ["2.jpg"]
    assert said.warnings == []


@pytest.mark.parametrize("policy", ["warn", "drop"])
def test_copies_of_groups_that_only_these_keep_together_are_leaks(
    leaky: Path, tmp_path: Path, policy: str
) -> None:
    rows = [("path", "label", "group")]
    for label in ("ant", "bee"):
        rows += [(str(leaky / f"train/{label}/{n}.jpg"), label, f"{label}{n}") for n in range(5)]
    for number in range(4):  # ant 0 = ant 1 = … by an image of each in the next one's group
        again = tmp_path / f"{number}.jpg"
        shutil.copyfile(leaky / f"train/ant/{number}.jpg", again)
        rows.append((str(again), "ant", f"ant{number + 1}"))
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    data, said = read(tmp_path / "list.csv", **{"data.leakage": policy})
    assert (len(said.warnings), len(data.rejected) > 0) == (policy == "warn", policy == "drop")
    assert "have copies that are seen before" in (said.warnings or said.notes)[-1]
