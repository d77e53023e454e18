"""Tests of layouts of folders: split folders under other names, wrappers, runs among the images."""

import shutil
from pathlib import Path

import pytest

from finetune.data.layouts.split_names import SplitSetting, parse_split_name
from finetune.data.scan import Scan, scan
from finetune.errors import DataError
from finetune.types import Split
from tests.support.helpers import write_images

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
STORED_RUN = Path(__file__).parents[2] / "files" / "run_0_1_0"


def list_triples(result: Scan) -> set[tuple[str, str, Split | None]]:
    return {(sample.path, sample.label, sample.split) for sample in result.samples}


def write_classes(root: Path, *folders: str, classes: tuple[str, ...] = ("ants", "bees")) -> Path:
    return write_images(root, *(f"{folder}/{name}/1.png" for folder in folders for name in classes))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train Train TRAINING training_set TrainSet trainset train-images seg_train", TRAIN),
        ("train_data traindata img_train train2017 train_256 Training_Images trainval", TRAIN),
        ("val valid Validation VAL_SET dev eval seg_val valset validation_data val2017", VAL),
        ("test Testing TEST_SET test_images seg_test testset test-data TestImages", TEST),
    ],
)
def test_parse_split_name_plain_names(names: str, split: Split) -> None:
    assert {name: parse_split_name(name) for name in names.split()} == dict.fromkeys(
        names.split(), split
    )


@pytest.mark.parametrize(
    "name",
    ["training shoes", "test tube", "train station", "steam train", "trains", "latest", "interval",
     "contest", "invalid", "device", "evil", "pretest", "train test", "images", "1", ""],
)  # fmt: skip
def test_parse_split_name_other_words_mean_no_split(name: str) -> None:
    assert parse_split_name(name) is None


@pytest.mark.parametrize(
    ("train", "held_out", "split"),
    [
        ("Training", "Testing", TEST),
        ("Training", "Validation", VAL),
        ("train_images", "val_images", VAL),
        ("seg_train/seg_train", "seg_test/seg_test", TEST),
        ("training_set/training_set", "test_set/test_set", TEST),
        ("archive/data/train", "archive/data/dev", VAL),
        ("archive/train/images", "archive/test/images", TEST),
        ("cars_train/cars_train", "cars_test/cars_test", TEST),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val", VAL),
        ("asl_alphabet_train", "asl_alphabet_eval", VAL),
    ],
)
def test_scan_split_folders_under_other_names(
    tmp_path: Path, train: str, held_out: str, split: Split
) -> None:
    write_classes(tmp_path, train, held_out)
    result = scan(tmp_path)
    assert list_triples(result) == {
        (f"{folder}/{name}/1.png", name, part)
        for folder, part in ((train, TRAIN), (held_out, split))
        for name in ("ants", "bees")
    }
    assert any(f"{train.removeprefix('archive/data/')} is train" in n for n in result.notes), (
        result.notes
    )


def test_scan_classic_split_names_need_no_note(tmp_path: Path) -> None:
    write_classes(tmp_path, "Train", "valid", "test")
    assert scan(tmp_path).notes == ()


@pytest.mark.parametrize(
    "names",
    [
        ["bus/1.png", "car/2.png", "train/3.png"],
        ["training shoes/1.png", "boots/2.png"],
        ["test tube/1.png", "flask/2.png"],
        ["valid/1.png", "invalid/2.png"],
        ["bus/city/1.png", "car/sports/2.png", "train/steam/3.png"],
        ["train/1.png", "test/2.png", "pred/3.png", "bus/4.png"],
        ["cat/indoor/1.png", "cat/outdoor/2.png", "dog/3.png"],
        ["dog_train/1.png", "cat_show/2.png"],
    ],
)
def test_scan_classes_that_only_sound_like_splits(tmp_path: Path, names: list[str]) -> None:
    write_images(tmp_path, *names)
    result = scan(tmp_path)
    assert list_triples(result) == {(name, name.partition("/")[0], None) for name in names}
    assert result.notes == ()


def test_scan_wrapper_of_class_folders_is_passed_through_and_noted(tmp_path: Path) -> None:
    write_classes(tmp_path, "archive/flower_photos")
    (tmp_path / "archive/meta").mkdir()
    (tmp_path / "archive/meta/labels.txt").touch()
    result = scan(tmp_path)
    assert list_triples(result) == {
        ("archive/flower_photos/ants/1.png", "ants", None),
        ("archive/flower_photos/bees/1.png", "bees", None),
    }
    assert result.root == tmp_path.resolve()
    assert "archive/flower_photos, the only folder with images in archive; meta" in result.notes[-1]


def test_scan_single_class_with_one_subfolder_is_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/deep/er/1.png")
    assert list_triples(scan(tmp_path)) == {("cat/deep/er/1.png", "cat", None)}


@pytest.mark.parametrize("folder", ["seg_pred/seg_pred", "unlabeled", "test", "Meta"])
def test_scan_unlabelled_folder_beside_splits_is_rejected_with_a_reason(
    tmp_path: Path, folder: str
) -> None:
    write_classes(tmp_path, "Train", "val")
    write_images(tmp_path, f"{folder}/8.png", f"{folder}/9.png")
    result = scan(tmp_path)
    assert {sample.split for sample in result.samples} == {TRAIN, VAL}
    assert {entry.path for entry in result.rejected} == {f"{folder}/8.png", f"{folder}/9.png"}
    top = folder.partition("/")[0]
    assert {entry.reason for entry in result.rejected} == {f"no label, {top} has no class folders"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        # images without class folders
        (["train/1.png", "test/2.png"], r"train and test in .* hold images, but no class folders"),
        (["Training/1.png", "Testing/2.png"], r"Expected Training/<class>/<image> and Testing"),
        (["train/images/1.png", "valid/images/2.png"], "train and valid .* no class folders"),
        (["train/1.png"], r"train in .* holds images, .*data\.splits=none"),
        (["train/1.png", "val/cat/2.png"], "train in .* holds images, but no class folders"),
        (["cars_train/1.png", "cars_test/2.png"], "cars_train and cars_test in .* no class"),
        # folders that may be splits
        (
            [f"{f}/{c}/1.png" for f in ("morning", "evening") for c in ("Ants", "Bees")],
            r"evening and morning both hold Ants, Bees: are they splits\?.*"
            r"data\.splits='evening=train,morning=test'.*data\.splits=none",
        ),
        (
            [f"{f}/{c}/1.png" for f in ("trainingsbilder", "testbilder") for c in ("a", "b")],
            r"data\.splits='trainingsbilder=train,testbilder=test'",
        ),
        (
            [f"{c}/{s}/1.png" for c in ("ants", "bees", "wasps") for s in ("train", "test")],
            r"ants, bees and wasps all hold test, train, which are names of splits",
        ),
        ([f"fold{n}/{s}/{c}/1.png" for n in (1, 2) for s in ("train", "val") for c in "ab"],
         "fold1 and fold2 both hold train, val"),
        (["dog_train/1.png", "dog_test/2.png", "cat_train/3.png", "cat_test/4.png"],
         "several sets of split folders"),
        (["data/train/a/1.png", "data/valid/b/2.png", "other/3.png"],
         "data holds the split folders train and valid, and other beside it holds images"),
        # split folders beside others
        (["train/a/1.png", "val/a/2.png", "extra/a/3.png"], r"also 'extra'.*data\.splits="),
        (["train/a/1.png", "train/b/1.png", "extra/3.png"],
         r"contains train, which holds a, b, and extra beside it\. If train is a split"),
        (["train/a/1.png", "val/a/2.png", "eval/a/3.png"], "two val splits, 'eval' and 'val'"),
    ],
)  # fmt: skip
def test_scan_doubtful_layout_asks_and_says_how_to_answer(
    tmp_path: Path, names: list[str], message: str
) -> None:
    write_images(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        scan(tmp_path)
    if "no class folders" not in message or names[0].count("/") == 1:
        assert {s.split for s in scan(tmp_path, splits="none").samples} == {None}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"morning": TRAIN, "evening": TEST}, {("morning", TRAIN), ("evening", TEST)}),
        ({"MORNING": TRAIN, "noon/noon": VAL}, {("morning", TRAIN), ("noon/noon", VAL)}),
        ({"morning": TRAIN, "evening": TRAIN}, {("morning", TRAIN), ("evening", TRAIN)}),
        ("none", {("morning", None), ("evening", None), ("noon/noon", None)}),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "archive/"])
def test_scan_named_splits(
    tmp_path: Path, splits: SplitSetting, expected: set[tuple[str, Split | None]], wrapper: str
) -> None:
    write_classes(tmp_path, *(f"{wrapper}{f}" for f in ("morning", "evening", "noon/noon")))
    result = scan(tmp_path, splits=splits)
    found = {(s.path.removeprefix(wrapper).rpartition("/")[0], s.split) for s in result.samples}
    assert found == {(f"{f}/{c}", split) for f, split in expected for c in ("ants", "bees")}
    passed = {"morning", "evening", "noon"} - {f.partition("/")[0] for f, _ in expected}
    assert [n for n in result.notes if "does not name" in n] == [
        f"Passed over {name}, which data.splits does not name." for name in passed
    ]


def test_scan_named_split_that_is_missing_raises_data_error(tmp_path: Path) -> None:
    write_classes(tmp_path, "morning", "evening")
    write_images(tmp_path, "flat/1.png")
    with pytest.raises(DataError, match=r"names 'mornin', but .* Did you mean 'morning'"):
        scan(tmp_path, splits={"mornin": TRAIN, "evening": TEST})
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path, splits={"../x": TRAIN, "evening": TEST})
    with pytest.raises(DataError, match=r"flat in .* no class folders"):
        scan(tmp_path, splits={"morning": TRAIN, "flat": TEST})


def write_run(folder: Path) -> None:
    """Write two files of a run with an audit picture in it."""
    folder.mkdir(parents=True)
    for name in ("config.yaml", "manifest.csv"):
        shutil.copy(STORED_RUN / name, folder)
    write_images(folder, "pictures/1.png")


def test_scan_passes_over_runs_audits_and_models_among_class_folders(tmp_path: Path) -> None:
    root = write_classes(tmp_path, ".")
    write_run(root / "runs/a")
    (root / "runs/latest").symlink_to("a")
    write_run(root / "ants/b")
    audit = write_images(root / "runs/audit-photos", "duplicates/0001.jpg")
    for name in ("audit.json", "audit.csv"):
        shutil.copy(STORED_RUN / name, audit)
    (root / "model").mkdir()
    (root / "cache/pixels/store").mkdir(parents=True)
    shutil.copy(STORED_RUN / "bundle/finetune.json", root / "model")
    (root / "model/model.safetensors").touch()
    for name in ("arrays.bin", "index.sqlite"):
        (root / "cache/pixels/store" / name).touch()
    result = scan(root)
    assert {s.path for s in result.samples} == {"ants/1.png", "bees/1.png"}
    assert list(result.notes) == [
        "Passed over cache, model and runs, written by finetune.",
        "Passed over ants/b, written by finetune.",
    ]
    with pytest.raises(DataError, match="runs/a was written by finetune"):
        scan(root / "runs/a")


@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "data:\n  path: .\nseed: 3\n", "manifest.csv": "path,label,split,group\n"},
        {"config.yaml": "", "manifest.csv": ""},
        {"audit.json": '{"num_images": 2}', "audit.csv": "image,reviewer\n1.png,me\n"},
        {"finetune.json": "[1, 2]", "model.safetensors": ""},
        {"arrays.bin": "x", "index.sqlite": "x"},
    ],
    ids=lambda files: next(iter(files)),
)
def test_scan_reads_folders_with_files_named_like_those_of_a_run(
    tmp_path: Path, files: dict[str, str]
) -> None:
    root = write_classes(tmp_path, ".")
    for folder in (root, root / "bees"):
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    result = scan(root)
    assert {s.path for s in result.samples} == {"ants/1.png", "bees/1.png"}
    assert result.notes == ()


@pytest.mark.parametrize("link", [None, "gone"])
def test_scan_passes_over_emptied_runs_folder(tmp_path: Path, link: str | None) -> None:
    write_classes(tmp_path, ".")
    (tmp_path / "runs").mkdir()
    if link:
        (tmp_path / "runs/latest").symlink_to(link)
    result = scan(tmp_path)
    assert {sample.label for sample in result.samples} == {"ants", "bees"}
    assert result.notes == ()


def test_scan_class_called_runs_stays_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, "walks/1.png", "runs/2.png")
    assert {sample.label for sample in scan(tmp_path).samples} == {"walks", "runs"}
