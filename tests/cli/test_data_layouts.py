"""Layouts and tables that were trained on wrong labels, through the commands."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import SMALL, Cli

pytestmark = pytest.mark.runs

CLASSES = ("ants", "bees")


def write_data(root: Path, *folders: str, count: int = 6) -> Path:
    """Write class folders below each folder; every image of a class differs from all others."""
    random = np.random.default_rng(len(folders))
    for folder in folders:
        for number, name in enumerate(CLASSES):
            place = root / folder / name
            place.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                pixels = random.integers(0, 200, (32, 32, 3))
                pixels[..., number] += 50
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{root.name}{image}.png")
    return root


@pytest.mark.parametrize(
    ("train", "test", "setting"),
    [
        ("Training", "Testing", ()),
        ("archive/seg_train/seg_train", "archive/seg_test/seg_test", ()),
        ("day", "night", ("data.splits=day=train,night=test",)),
    ],
)
def test_splits_under_other_names_are_planned_trained_audited_and_evaluated(
    cli: Cli, tmp_path: Path, train: str, test: str, setting: tuple[str, ...]
) -> None:
    data, run = write_data(tmp_path / "data", train, test), tmp_path / "run"
    shown = f"{train} is train, {test} is test"
    output = cli.ok("fit", data, *setting, *SMALL, "--dry-run", "--json")
    plan = output.json["plan"]["data"]
    assert plan["classes"] == list(CLASSES)
    assert plan["class_counts"]["test"] == {"ants": 6, "bees": 6}
    assert plan["num_images"]["train"] + plan["num_images"]["val"] == 12
    assert shown in plan["layout"][-1]
    assert shown in output.err
    audit = cli.ok("inspect", data, *setting, "--output", tmp_path / "audit", "--json").json
    assert audit["class_counts"] == {
        "train": {"ants": 6, "bees": 6},
        "test": {"ants": 6, "bees": 6},
    }
    assert shown in audit["layout"][-1]
    cli.ok("fit", data, *setting, *SMALL, "--output", run)
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["path"].rpartition("/")[0].rpartition("/")[0] for row in rows} == {train, test}
    own = cli.ok("evaluate", run, "--json").json
    assert (own["split"], own["num_images"]) == ("test", 12)
    other = shutil.copytree(data, tmp_path / "other")
    for model in (run, run / "bundle"):
        options = [f"--splits={setting[0].partition('=')[2]}"] if setting else []
        result = cli.ok("evaluate", model, other, *options, "--json").json
        assert (result["split"], result["num_images"]) == ("test", 12)


def test_doubtful_splits_are_asked_about_in_every_command(cli: Cli, tmp_path: Path) -> None:
    good, run = write_data(tmp_path / "good", "."), tmp_path / "run"
    cli.ok("fit", good, *SMALL, "--output", run)
    data = write_data(tmp_path / "data", "day", "night")
    for command in (["fit", data, *SMALL, "--dry-run"], ["inspect", data], ["evaluate", run, data]):
        message = cli.fails(*command, code=3)
        assert "day and night both hold ants, bees: are they splits?" in message
        assert "data.splits='day=train,night=test'" in message
    assert cli.ok("evaluate", run, data, "--splits", "night=test", "--json").json["split"] == "test"
    message = cli.fails("evaluate", run, data, "--splits", "night=tets", code=2)
    assert "NAME=SPLIT" in message
    plan = cli.ok("fit", data, "data.splits=none", *SMALL, "--dry-run", "--json").json["plan"]
    assert plan["data"]["classes"] == ["day", "night"]


def test_splits_without_class_folders_are_refused_by_every_command(
    cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cli.ok("fit", write_data(tmp_path / "good", "."), *SMALL, "--output", run)
    data = write_data(tmp_path / "data", ".")
    (data / "ants").rename(data / "train")
    (data / "bees").rename(data / "test")
    for command in (["fit", data, *SMALL, "--dry-run"], ["inspect", data], ["evaluate", run, data]):
        message = cli.fails(*command, code=3)
        assert f"train and test in {data} hold images, but no class folders" in message
        assert "Expected train/<class>/<image> and test/<class>/<image>" in message


def test_split_among_class_folders_is_asked_about_by_every_command(
    cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cli.ok("fit", write_data(tmp_path / "good", "."), *SMALL, "--output", run)
    data = write_data(tmp_path / "other/data", ".", "test")
    for command in (["fit", data, *SMALL, "--dry-run"], ["inspect", data], ["evaluate", run, data]):
        message = cli.fails(*command, code=3)
        assert f"{data} contains ants, bees and also 'test', which holds them again" in message
    nested = "data=train,data/test=test"
    for command in (
        ["fit", data.parent, f"data.splits={nested}", *SMALL, "--dry-run"],
        ["evaluate", run, data.parent, "--splits", nested],
    ):
        assert "its images would be in two splits" in cli.fails(*command, code=3)


def test_commands_in_the_folder_of_the_images_pass_over_their_own_output(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "photos", ".")
    shutil.copy(data / "ants/photos0.png", data / "ants/copy.png")
    monkeypatch.chdir(data)
    cli.ok("inspect", ".")
    assert list((data / "runs/audit-photos/duplicates").iterdir())
    cli.ok("fit", ".", *SMALL)
    cli.ok("export", "runs/latest", "--output", "model")
    for command in (["inspect", "."], ["fit", ".", *SMALL], ["fit", ".", *SMALL, "--dry-run"]):
        output = cli.ok(*command)
        assert "Passed over model and runs, written by finetune." in output.out
    counts = cli.ok("inspect", ".", "--json").json["class_counts"]
    assert counts == {"all": {"ants": 7, "bees": 6}}
    assert cli.ok("evaluate", "runs/latest", ".", "--json").json["split"] == "val"
    assert cli.ok("evaluate", "model", ".", "--json").json["num_images"] == 13
    assert cli.ok("predict", "runs/latest", ".", "--json").json["num_images"] == 13
    message = cli.fails("fit", "runs/latest", *SMALL, code=3)
    assert "was written by finetune" in message


def test_similar_class_names_are_listed_by_inspect_and_fit(cli: Cli, tmp_path: Path) -> None:
    data, output = write_data(tmp_path / "data", "."), tmp_path / "audit"
    shutil.copytree(data / "ants", data / "Ants")
    (data / "ants ").mkdir()
    (data / "ants/data1.png").rename(data / "ants /1.png")
    expected = [{"names": ["Ants", "ants"], "num_images": [6, 6]}]
    result = cli.ok("inspect", data, "--output", output)
    assert "class names look alike: 'Ants' (6 images) and 'ants' (6 images)" in result.words
    assert "Class folders 'ants' and 'ants ' are read as one class, 'ants'." in result.out
    tree = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    assert tree["similar_classes"] == expected
    assert "similar class names" in (output / "audit.csv").read_text(encoding="utf-8")
    plan = cli.ok("fit", data, *SMALL, "--dry-run", "--json")
    assert plan.json["plan"]["data"]["similar_classes"] == expected
    assert "class names look alike: 'Ants' (6 images) and 'ants' (6 images)" in plan.err


def test_images_in_two_class_folders_leave_nothing_to_hold_out(cli: Cli, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ".")
    shutil.rmtree(data / "bees")
    shutil.copytree(data / "ants", data / "bees")
    message = cli.fails("fit", data, *SMALL, code=3)
    assert "can be held out for val: all of 12 images have copies in another class" in message
    assert "('ants', 'bees')" in message


def test_csv_with_wrong_paths_names_a_file_that_fits(cli: Cli, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ".")
    file = data / "list.csv"
    file.write_text("path,label\nants/data0,ants\nbees/data0,bees\n", encoding="utf-8")
    for command in (["fit", file, *SMALL], ["inspect", file]):
        message = cli.fails(*command, code=3)
        assert "its 2 rows are left out, the first in line 2: ants/data0: no image" in message
        assert "ants/data0.png exists: write this path" in message
    file.write_text("path,label\nimg/data0.png,ants\nbees/data1.png,bees\n", encoding="utf-8")
    message = cli.fails("fit", file, *SMALL, code=3)
    assert "No image of class 'ants' can be read (such as img/data0.png: " in message
    assert "ants/data0.png exists. Correct the paths." in message
