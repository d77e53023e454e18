"""Groups of images by their names, through the commands."""

import csv
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Cli
from tests.cli.test_data_layouts import write_data

pytestmark = pytest.mark.runs


def test_groups_in_names_reach_the_plan_the_manifest_and_the_audit(
    cli: Cli, tmp_path: Path
) -> None:
    folder = write_data(tmp_path / "photos", "train", "test")
    for file in sorted(folder.rglob("*.png")):
        number = int(file.stem.removeprefix("photos"))
        split = file.parts[-3]
        file.rename(file.with_name(f"{split}{number // 2}-{file.parent.name}_{number}.png"))
    pattern = "data.group_by=/(?P<group>[^/]+)_"
    plan = cli.ok("fit", folder, pattern, *SMALL, "--dry-run", "--json")
    assert plan.json["plan"]["data"]["groups"]["num_groups"] == 12
    run = tmp_path / "run"
    output = cli.ok("fit", folder, pattern, *SMALL, "--output", run)
    assert "groups 12 groups by data.group_by, largest 2 images (test0-ants)" in output.words
    splits: dict[str, set[str]] = {}
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            splits.setdefault(row["group"], set()).add(row["split"])
    assert {len(found) for found in splits.values()} == {1}
    option = ("--group-by", "/(?P<group>[^/]+)_", "--output", tmp_path / "audit")
    audit = cli.ok("inspect", folder, *option)
    assert "groups 12 groups by data.group_by, largest 2 images (test0-ants)" in audit.words


def test_pattern_that_captures_the_class_is_told(cli: Cli, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "photos", "train") / "train"
    audit = cli.ok("inspect", folder, "--group-by", "([a-z]+)/", "--output", tmp_path / "audit")
    told = " ".join(audit.err.split())
    assert "All images of each of 2 classes (such as 'ants') are in one group ('ants')" in told
    assert "change the pattern of groups" in told
    failed = cli.fails("fit", folder, "data.group_by=([a-z]+)/", *SMALL, code=3)
    assert "If data.group_by found the groups, change its pattern" in " ".join(failed.split())


def test_groups_across_given_splits_are_leaks(cli: Cli, tmp_path: Path) -> None:
    """Images of one group in train and test are told, and metrics without them are reported."""
    folder = write_data(tmp_path / "photos", "train", "test")
    for file in sorted(folder.rglob("*.png")):
        number = int(file.stem.removeprefix("photos"))
        shift = 1 if file.parts[-3] == "test" else 0
        file.rename(file.with_name(f"{file.parent.name}{number // 2 + shift}_{number}.png"))
    pattern = "data.group_by=/([a-z]+[0-9])_"
    output = cli.ok("fit", folder, pattern, *SMALL, "--output", tmp_path / "run")
    told = " ".join(output.err.split())
    assert "8 of 12 test images are in a group with images of train" in told
    assert "(such as test/ants/ants1_0.png, in the group 'ants1' of " in told
    result = cli.ok("evaluate", tmp_path / "run", "--json").json
    assert result["without_leaks"]["num_images"] == 4
    audit = cli.ok("inspect", folder, pattern, "--output", tmp_path / "audit")
    assert "4 across splits (leakage), such as" in audit.words
    failed = cli("fit", folder, pattern, "data.leakage=error", *SMALL)
    assert (failed.code, failed.out) == (3, "")
    assert "data.leakage=error: 8 of 12 test images" in failed.err
