"""The summary of an audit, 80 columns wide, and the options of ``inspect``."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from finetune.cli.render.audit_summary import describe_audit
from tests.cli.conftest import Cli
from tests.support.pictures import create_scene, write_jpeg


def describe(**changes: Any) -> str:
    """Return the summary of an audit with the given keys changed."""
    tree: dict[str, Any] = {
        "num_images": 90,
        "class_counts": {"all": {"ant": 30, "bee": 60}},
        "imbalance_ratio": 2.0,
        "under_represented_classes": [],
        "size_quantiles": {
            "width": [10, 20, 30, 40, 50],
            "height": [11, 21, 31, 41, 51],
            "aspect_ratio": [1, 1, 1, 1, 1],
            "num_bytes": [1000, 1000, 2600, 3000, 9000],
        },
        "image_modes": {"RGB": 89, "L": 1},
        "unreadable": [],
        "pixel_range": "full",
        "sixteen_bit_files": None,
        "layout": [],
        "similar_classes": [],
        "duplicates": [],
        "suspicious_images": [],
        "label_errors": None,
        "advice": [{"option": "--batch-size", "value": 32, "reason": "few"}],
    }
    return "\n".join(describe_audit({**tree, **changes}))


def group(
    *names: str, conflict: str | None = None, kind: str = "exact", **sides: list[str]
) -> dict[str, Any]:
    """Return a duplicate group as values of JSON."""
    same = {"labels": ["ant"] * len(names), "splits": ["train"] * len(names)}
    conflicts = [conflict] if conflict else []
    return {"kind": kind, "conflicts": conflicts, "paths": list(names), **same, **sides}


def test_describe_audit_plain() -> None:
    text = describe()
    assert text.startswith(
        "90 images, 2 classes\n\n"
        "  bee       60  66.7% ██████████████████████████████\n"
        "  ant       30  33.3% ███████████████\n"
        "imbalance ratio 2\n"
    )
    assert "sizes       median 30x31, from 10x11 to 50x51\n" in text
    assert "files       89 RGB, 1 L; median 2.6 kB\n" in text
    assert "unreadable  none\n" in text
    assert "duplicates  none\n" in text
    assert "suspicious  none\n" in text
    assert text.endswith("advice      --batch-size 32  few")


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
def test_describe_audit_header_counts_by_split(counts: Any, head: str) -> None:
    assert describe(class_counts=counts).startswith(head)


def test_describe_audit_many_classes_shows_largest_and_smallest() -> None:
    counts = {f"c{number:03}": number + 1 for number in range(100)}
    text = describe(
        class_counts={"all": counts}, under_represented_classes=[f"c{n:03}" for n in range(19)]
    )
    assert "\n  … 88 more\n" in text
    assert [name for name in counts if name in text] == [
        *(f"c{n:03}" for n in range(6)), *(f"c{n:03}" for n in range(94, 100)),
    ]  # fmt: skip
    assert "; 19 with fewer than 20 images: c000, c001, c002, …\n" in text


def test_describe_audit_long_names_and_wide_letters_keep_columns() -> None:
    names = ["a", "n" * 70, "猫" * 40, "é" * 30, "line\nbreak"]
    text = describe(class_counts={"all": dict.fromkeys(names, 123_456)})
    lines = text.splitlines()[2:7]
    assert {cell_len(line) for line in lines} == {79}
    assert {cell_len(line.partition("█")[0]) for line in lines} == {49}


def test_describe_audit_duplicates_not_searched() -> None:
    assert "duplicates  not searched\n" in describe(duplicates=None)


def test_describe_audit_group_shows_two_differing_images() -> None:
    text = describe(
        duplicates=[
            group("1", "2", "3", conflict="splits", splits=["train", "train", "val"]),
            group("4", "5", "6", "7", conflict="classes", labels=["a", "a", "b", "b"]),
            group("8", "9", kind="near"),
        ]
    )
    assert "duplicates  9 images in 3 groups: 2 exact, 1 near\n" in text
    assert "   1  exact  1 = 3 and 1 more\n" in text
    assert "   2  exact  4 = 6 and 2 more\n" in text
    assert "   3  near   8 = 9\n" in text
    assert "duplicates  2 images in 1 group: 1 exact, 0 near" in describe(
        duplicates=[group("8", "9")]
    )


def test_describe_audit_long_paths_are_not_broken() -> None:
    one, other = "train/" + "a" * 50, "val/" + "b" * 90
    pair = group(one, other, conflict="splits", splits=["train", "val"])
    assert f"   1  exact  {one}\n           = {other}\n" in describe(duplicates=[pair])


def test_describe_audit_reasons_are_wrapped() -> None:
    advice = [
        {"option": "--backbone", "value": "resnet50", "reason": "word " * 20},
        {"option": "trainer.monitor", "value": "balanced_accuracy", "reason": "short"},
    ]
    lines = describe(advice=advice).splitlines()[-5:]
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("advice      --backbone resnet50                word word")
    assert lines[1].startswith(" " * 47 + "word")
    assert lines[-1] == " " * 12 + "trainer.monitor=balanced_accuracy  short"


def test_describe_audit_suspicious_images_are_counted() -> None:
    images = [{"path": f"{n}.png", "kind": "dark", "detail": "so dark"} for n in range(9)]
    text = describe(
        suspicious_images=[*images, {"path": "b.png", "kind": "tiny", "detail": "3 pixels"}]
    )
    assert "suspicious  9 dark, 1 tiny\n    dark        0.png: so dark\n" in text
    assert "    tiny        b.png: 3 pixels\n" in text
    assert "3.png" not in text
    assert "    … and 6 more, in audit.csv\n" in text


def test_describe_audit_label_errors() -> None:
    error = {
        "path": "a.png", "label": "ant", "label_probability": 0.1, "predicted_label": "bee",
        "predicted_probability": 0.855,
    }  # fmt: skip
    assert "labels      no likely errors" in describe(label_errors=[])
    check = {"num_images": 397, "accuracy": 0.632}
    text = describe(label_errors=[error] * 9, label_check=check)
    assert "\n    by heads that predict 63.2% of 397 images as labelled\n" in text
    text = describe(label_errors=[error] * 9)
    assert re.search(r"labels      9 .*\n    a\.png: .*ant .*0\.10.*bee .*0\.85", text)
    assert text.count("a.png") == 4
    assert "    … and 5 more, in audit.csv\n" in text


def test_describe_audit_groups_are_numbered_and_lists_are_cut() -> None:
    inside = [group("1", "2")] * 6
    text = describe(
        duplicates=[*inside, group("8", "9", conflict="splits", splits=["train", "val"])]
    )
    assert "   1  exact  8 = 9\n" in text
    assert "   2  exact  1 = 2\n   3  exact  1 = 2\n    … and 4 more, in audit.csv\n" in text
    bad = [{"path": f"{n}.png", "reason": "empty file"} for n in range(5)]
    assert "2.png: empty file\n    … and 2 more, in audit.csv\n" in describe(unreadable=bad)


def test_describe_audit_one_class() -> None:
    assert describe(class_counts={"all": {"a": 9}}, advice=[]).endswith(
        "a classifier needs at least two"
    )
    assert "needs at least two" not in describe()


def test_describe_audit_without_advice() -> None:
    assert describe(advice=[]) == describe().rpartition("\nadvice")[0]


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """Return splits with a leak, in a class whose name a console may choke on."""
    root = tmp_path / "garden"
    for label in ("ant [red]", "猫"):
        for split in ("train", "val"):
            (root / split / label).mkdir(parents=True)
            for number in range(3):
                seed = number + 10 * (split == "val") + 100 * (label == "猫")
                write_jpeg(root / split / label / f"{number}.jpg", create_scene(seed))
    shutil.copyfile(root / "train/猫/0.jpg", root / "val/猫/leak.jpg")
    return root


def test_inspect_prints_summary_of_80_columns(
    cli: Cli, garden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    result = cli.ok("inspect", "garden")
    assert result.err == ""
    assert max(map(cell_len, result.out.splitlines())) <= 80
    assert "13 images (6 train; 7 val), 2 classes" in result.out
    assert (
        "               train     val  fraction of train\n  ant [red]        3       3  50.0% "
        in result.out
    )
    assert "   1  exact  train/猫/0.jpg = val/猫/leak.jpg" in result.out
    assert "data.leakage=drop" in result.out
    assert "written     runs/audit-garden/: audit.json, audit.csv, duplicates/*.jpg\n" in result.out


def test_inspect_json_prints_one_object(cli: Cli, garden: Path, tmp_path: Path) -> None:
    (garden / "train/猫/bad.jpg").write_bytes(b"no")
    output = tmp_path / "my audit"
    result = cli.ok("inspect", garden, "--output", output, "--json")
    tree = result.json
    assert (tree["data"], tree["output"]) == (str(garden), str(output))
    written = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    assert {**written, "data": str(garden), "output": str(output)} == tree
    assert written["data"] == str(garden.resolve())
    assert "1 file left out" in result.err


def test_inspect_accepts_keys_and_csv(cli: Cli, garden: Path, tmp_path: Path) -> None:
    lines = [f"train/{label}/{n}.jpg,{label}" for label in ("ant [red]", "猫") for n in range(3)]
    (garden / "list.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    args = ("inspect", garden / "list.csv", "--output", tmp_path / "audit", "--json")
    assert cli.ok(*args).json["class_counts"] == {"all": {"ant [red]": 3, "猫": 3}}
    fit_args = ("fit", garden / "list.csv", "--weights", "random", "--output", tmp_path / "run")
    message = cli.fails(*fit_args, "data.max_megapixels=0.01", code=3)
    assert "No image of class 'ant [red]' can be read" in message
    assert "over data.max_megapixels=0.01" in message


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["inspect", "gone"], 3, "gone does not exist"),
        (["inspect", "data.cache=off"], 2, "finetune fit"),
        (["inspect", "garden", "garden"], 2, "Two data paths"),
        (["inspect", "garden", "data.max_megapixel=3"], 2, "max_megapixel"),
    ],
)
def test_inspect_mistakes_exit_with_code_and_message(
    cli: Cli,
    garden: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(garden.parent)
    assert message in cli.fails(*args, code=code)
