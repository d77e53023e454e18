"""The page of an inspection: what a person reads, on 80 columns."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from finetune.cli.render.audit_summary import describe_audit
from tests.cli.conftest import Cli
from tests.support.pictures import scene, write_jpeg


def page(**changes: Any) -> str:
    """Return the page of an audit with a few values changed."""
    tree: dict[str, Any] = {
        "num_images": 90,
        "counts": {"all": {"ant": 30, "bee": 60}},
        "imbalance_ratio": 2.0,
        "starved_classes": [],
        "sizes": {
            "width": [10, 20, 30, 40, 50],
            "height": [11, 21, 31, 41, 51],
            "aspect_ratio": [1, 1, 1, 1, 1],
            "bytes": [1000, 1000, 2600, 3000, 9000],
        },
        "modes": {"RGB": 89, "L": 1},
        "unreadable": [],
        "copies": [],
        "suspicious": [],
        "labels": None,
        "advice": [{"option": "--batch-size", "value": 32, "reason": "few"}],
    }
    return "\n".join(describe_audit({**tree, **changes}))


def copies(*names: str, where: str, kind: str = "exact", **sides: list[str]) -> dict[str, Any]:
    """Return a group of copies as JSON has it."""
    same = {"labels": ["ant"] * len(names), "splits": ["train"] * len(names)}
    return {"kind": kind, "where": [where], "paths": list(names), **same, **sides}


def test_a_plain_page() -> None:
    said = page()
    assert said.startswith(
        "90 images, 2 classes\n\n"
        "  bee       60  66.7% ██████████████████████████████\n"
        "  ant       30  33.3% ███████████████\n"
        "largest/smallest 2\n"
    )
    assert "sizes       half below 30x31, from 10x11 to 50x51\n" in said
    assert "files       89 RGB, 1 L; 3 kB in the middle\n" in said
    assert "unreadable  none\n" in said
    assert "copies      none\n" in said
    assert "suspicious  none\n" in said
    assert said.endswith("advice      --batch-size 32  few")


@pytest.mark.parametrize(
    ("counts", "head"),
    [
        ({"all": {"a": 1}}, "1 image, 1 class\n"),
        ({"val": {"a": 40, "b": 50}}, "90 images of val, 2 classes\n"),
        (
            {"train": {"a": 40, "b": 40}, "val": {"a": 10}},
            "90 images (80 train; 10 val), 2 classes\n",
        ),
        (
            {"all": {"a": 40, "b": 40}, "val": {"a": 10}},
            "90 images (80 without a split; 10 val), 2 classes\n",
        ),
    ],
)
def test_the_first_line_counts_images_by_split(counts: Any, head: str) -> None:
    assert page(counts=counts).startswith(head)


def test_of_many_classes_the_largest_and_the_smallest_are_shown() -> None:
    counts = {f"c{number:03}": number + 1 for number in range(100)}
    said = page(counts={"all": counts}, starved_classes=[f"c{n:03}" for n in range(19)])
    assert "\n  … 88 more\n" in said
    assert [name for name in counts if name in said] == [
        *(f"c{n:03}" for n in range(6)), *(f"c{n:03}" for n in range(94, 100)),
    ]  # fmt: skip
    assert "; 19 with fewer than 20 images: c000, c001, c002, …\n" in said


def test_long_names_and_wide_letters_keep_the_columns() -> None:
    names = ["a", "n" * 70, "猫" * 40, "é" * 30, "line\nbreak"]
    said = page(counts={"all": dict.fromkeys(names, 123_456)})
    lines = said.splitlines()[2:7]
    assert {cell_len(line) for line in lines} == {79}
    assert {cell_len(line.partition("█")[0]) for line in lines} == {49}


def test_copies_that_were_not_looked_for_are_not_none() -> None:
    assert "copies      not looked for\n" in page(copies=None)


def test_each_group_shows_two_images_that_tell_why() -> None:
    said = page(
        copies=[
            copies("1", "2", "3", where="across splits", splits=["train", "train", "val"]),
            copies("4", "5", "6", "7", where="across classes", labels=["a", "a", "b", "b"]),
            copies("8", "9", where="inside a class", kind="near"),
        ]
    )
    assert "copies      9 images in 3 groups: 2 exact, 1 near\n" in said
    assert "   1  exact  1 = 3 and 1 more\n" in said
    assert "   2  exact  4 = 6 and 2 more\n" in said
    assert "   3  near   8 = 9\n" in said
    assert "copies      2 images in 1 group: 1 exact, 0 near" in page(
        copies=[copies("8", "9", where="inside a class")]
    )


def test_long_paths_are_not_broken() -> None:
    one, other = "train/" + "a" * 50, "val/" + "b" * 90
    group = copies(one, other, where="across splits", splits=["train", "val"])
    assert f"   1  exact  {one}\n           = {other}\n" in page(copies=[group])


def test_reasons_are_wrapped_under_themselves() -> None:
    advice = [
        {"option": "--backbone", "value": "resnet50", "reason": "word " * 20},
        {"option": "trainer.monitor", "value": "balanced_accuracy", "reason": "short"},
    ]
    lines = page(advice=advice).splitlines()[-5:]
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("advice      --backbone resnet50                word word")
    assert lines[1].startswith(" " * 47 + "word")
    assert lines[-1] == " " * 12 + "trainer.monitor=balanced_accuracy  short"


def test_suspects_are_counted_and_some_named() -> None:
    suspects = [{"path": f"{n}.png", "kind": "dark", "detail": "so dark"} for n in range(9)]
    said = page(suspicious=[*suspects, {"path": "b.png", "kind": "tiny", "detail": "3 pixels"}])
    assert "suspicious  9 dark, 1 tiny\n    dark        0.png: so dark\n" in said
    assert "    tiny        b.png: 3 pixels\n" in said
    assert "3.png" not in said
    assert "    … and 6 more, in audit.csv\n" in said


def test_labels_in_doubt() -> None:
    label = {
        "path": "a.png", "label": "ant", "likely": "bee", "probability": 0.1,
        "likely_probability": 0.855,
    }  # fmt: skip
    assert "labels      none in doubt" in page(labels=[])
    said = page(labels=[label] * 9)
    assert "labels      9 in doubt, the most doubtful first\n    a.png: bee 0.85, ant 0.10" in said
    assert said.count("a.png") == 4
    assert "    … and 5 more, in audit.csv\n" in said


def test_groups_are_numbered_as_in_the_files_and_lists_say_what_they_leave_out() -> None:
    inside = [copies("1", "2", where="inside a class")] * 6
    said = page(copies=[*inside, copies("8", "9", where="across splits", splits=["train", "val"])])
    assert "   1  exact  8 = 9\n" in said
    assert "   2  exact  1 = 2\n   3  exact  1 = 2\n    … and 4 more, in audit.csv\n" in said
    bad = [{"path": f"{n}.png", "reason": "empty file"} for n in range(5)]
    assert "2.png: empty file\n    … and 2 more, in audit.csv\n" in page(unreadable=bad)


def test_one_class_is_said_to_be_too_few() -> None:
    assert page(counts={"all": {"a": 9}}, advice=[]).endswith("a classifier needs at least two")
    assert "needs at least two" not in page()


def test_without_advice_the_page_ends_earlier() -> None:
    assert page(advice=[]) == page().rpartition("\nadvice")[0]


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """Return splits with a leak, in a class whose name a console may choke on."""
    root = tmp_path / "garden"
    for label in ("ant [red]", "猫"):
        for split in ("train", "val"):
            (root / split / label).mkdir(parents=True)
            for number in range(3):
                seed = number + 10 * (split == "val") + 100 * (label == "猫")
                write_jpeg(root / split / label / f"{number}.jpg", scene(seed))
    shutil.copyfile(root / "train/猫/0.jpg", root / "val/猫/leak.jpg")
    return root


def test_a_person_reads_a_page_of_80_columns(
    cli: Cli, garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    said = cli.ok("inspect", "garden")
    assert said.err == ""
    assert max(map(cell_len, said.out.splitlines())) <= 80
    assert "13 images (6 train; 7 val), 2 classes" in said.out
    assert (
        "               train     val  share of train\n  ant [red]        3       3  50.0% "
        in said.out
    )
    assert "   1  exact  train/猫/0.jpg = val/猫/leak.jpg" in said.out
    assert "data.leakage=drop" in said.out
    assert "written     runs/audit-garden/: audit.json, audit.csv, copies/*.jpg\n" in said.out


def test_a_program_reads_one_object(cli: Cli, garden: Path, tmp_path: Path) -> None:
    (garden / "train/猫/bad.jpg").write_bytes(b"no")
    output = tmp_path / "my audit"
    said = cli.ok("inspect", garden, "--output", output, "--json")
    tree = said.json
    assert (tree["data"], tree["output"]) == (str(garden), str(output))
    written = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    assert {**written, "data": str(garden), "output": str(output)} == tree
    assert written["data"] == str(garden.resolve())
    assert "1 file left out" in said.err


def test_keys_are_taken_and_a_csv_is_read(cli: Cli, garden: Path, tmp_path: Path) -> None:
    lines = [f"train/{label}/{n}.jpg,{label}" for label in ("ant [red]", "猫") for n in range(3)]
    (garden / "list.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    words = ("inspect", garden / "list.csv", "--output", tmp_path / "audit", "--json")
    assert cli.ok(*words).json["counts"] == {"all": {"ant [red]": 3, "猫": 3}}
    of_fit = ("fit", garden / "list.csv", "--output", tmp_path / "run")
    refused = cli.refused(*of_fit, "data.max_megapixels=0.01", code=3)
    assert "No image of class 'ant [red]' can be read" in refused
    assert "over data.max_megapixels=0.01" in refused


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["inspect", "gone"], 3, "gone does not exist"),
        (["inspect", "data.cache=off"], 2, "No images"),
        (["inspect", "garden", "garden"], 2, "Two data paths"),
        (["inspect", "garden", "data.max_megapixel=3"], 2, "max_megapixel"),
        (["inspect", "garden", "--output", "garden/audit"], 5, "among the images"),
    ],
)
def test_mistakes_are_one_message(
    cli: Cli,
    garden: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(garden.parent)
    assert message in cli.refused(*words, code=code)
