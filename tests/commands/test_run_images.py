"""Tests of evaluating a run whose images have moved, or whose labels, splits or files differ."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

import finetune
from finetune.commands.evaluate import EvaluateResult
from finetune.errors import DataError
from finetune.types import Split
from tests.conftest import CLASSES
from tests.support.helpers import RecordingReporter, create_noise
from tests.support.runs import create_small_config, get_class_evaluation, write_photos

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

NO_DIFFERENCES = {
    "labels": 0,
    "evaluated_labels": 0,
    "splits": 0,
    "new_images": 0,
    "unassigned_images": 0,
    "missing_images": 0,
    "changed_files": 0,
}


def evaluate(
    run: Path, data: Path | None = None, split: Split | None = None
) -> tuple[EvaluateResult, RecordingReporter]:
    reporter = RecordingReporter()
    result = finetune.evaluate(run, data, split=split, device="cpu", reporter=reporter)
    return result, reporter


def list_rows(run: Path, split: str) -> list[dict[str, str]]:
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["split"] == split]


def get_differences(result: EvaluateResult) -> dict[str, int]:
    """Return the differences that are not 0."""
    tree = result.to_json()["differences"]
    assert tree.keys() == NO_DIFFERENCES.keys()
    return {name: count for name, count in tree.items() if count}


def write_csv(file: Path, rows: Iterable[tuple[str, ...]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file


def remove_digests(run: Path) -> None:
    """Turn the manifest of a run into one of an earlier release."""
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        rows = [list(row.values())[:-1] for row in csv.DictReader(stream)]
    header = ("path", "label", "split", "group", "duplicate_group")
    write_csv(run / "manifest.csv", [header, *(tuple(row) for row in rows)])


@pytest.fixture
def own(trained: FitResult, insects: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a run folder and its data, both to be changed."""
    data = Path(shutil.copytree(insects, tmp_path / "insects"))
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace(str(insects), str(data)), encoding="utf-8")
    return run, data


# The images are elsewhere


@pytest.mark.parametrize("named", ["photos", "the folder above"])
@pytest.mark.parametrize("split", [None, Split.VAL])
def test_moved_images_give_the_metrics_of_the_run_bit_for_bit(
    trained: FitResult, insects: Path, tmp_path: Path, named: str, split: Split | None
) -> None:
    moved = Path(shutil.copytree(insects, tmp_path / "new place" / "photos"))
    (tmp_path / "new place" / "thoughts").mkdir()
    data = moved if named == "photos" else moved.parent
    result, reporter = evaluate(trained.run_dir, data, split)
    name = split or "test"
    assert dict(result.evaluation.metrics) == dict(trained.metrics[name])
    count = len(list_rows(trained.run_dir, name))
    assert f"{count} {name} images of the run, found below {moved}" in reporter.notes[-1]
    assert reporter.warnings == []
    assert (result.num_training_images, get_differences(result)) == (0, {})


def test_manifest_has_the_digest_of_each_file(trained: FitResult, insects: Path) -> None:
    for row in list_rows(trained.run_dir, "test"):
        data = (insects / row["path"]).read_bytes()
        assert row["digest"] == hashlib.blake2b(data, digest_size=16).hexdigest()


def test_moved_and_renamed_images_are_found_by_content(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    for name in CLASSES:
        (tmp_path / "other" / name).mkdir(parents=True)
        # names that belonged to others
        for file, other in zip(sorted((insects / name).iterdir()), range(30, 0, -1), strict=False):
            shutil.copy(file, tmp_path / "other" / name / f"{name} {other - 14:02}.png")
    result, reporter = evaluate(trained.run_dir, tmp_path / "other")
    assert dict(result.evaluation.metrics) == dict(trained.metrics["test"])
    assert (result.num_training_images, get_differences(result)) == (0, {})
    assert reporter.warnings == []


def test_images_in_a_csv_of_other_names_are_found_by_content(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    rows = [("path", "label")]
    (tmp_path / "flat").mkdir()
    for number, file in enumerate(sorted(insects.rglob("*.png"))):
        shutil.copy(file, tmp_path / "flat" / f"{number}.png")
        rows.append((f"flat/{number}.png", file.parent.name))
    result, _ = evaluate(trained.run_dir, write_csv(tmp_path / "labels.csv", rows))
    assert dict(result.evaluation.metrics) == dict(trained.metrics["test"])
    assert result.num_training_images == 0


def test_training_images_under_other_names_are_counted(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    for number, row in enumerate(list_rows(trained.run_dir, "train")[::6]):
        (tmp_path / row["label"]).mkdir(exist_ok=True)
        shutil.copy(insects / row["path"], tmp_path / row["label"] / f"copy {number}.png")
    for number, name in enumerate(CLASSES):
        (tmp_path / name).mkdir(exist_ok=True)
        create_noise(seed=number).save(tmp_path / name / "new.png")
    for model in (trained.run_dir, trained.run_dir / "bundle"):
        result, reporter = evaluate(model, tmp_path)
        assert (result.evaluation.num_images, result.num_training_images) == (7, 4)
        assert "4 of 7 images are training images" in reporter.warnings[-1]
        assert result.differences is None


def test_other_images_under_the_names_of_the_run_are_all_evaluated(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    for number, file in enumerate(sorted(insects.rglob("*.png"))):
        other = tmp_path / "insects" / file.relative_to(insects)
        other.parent.mkdir(parents=True, exist_ok=True)
        create_noise(seed=number).save(other)
    result, reporter = evaluate(trained.run_dir, tmp_path / "insects")
    assert (result.evaluation.num_images, result.split) == (38, None)
    assert result.num_training_images == 0
    (warning,) = reporter.warnings
    assert "38 of 38 images have the name of an image of the run but another content" in warning


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_edited_copies_of_training_images_are_told(
    trained: FitResult, insects: Path, tmp_path: Path, suffix: str
) -> None:
    for file in insects.rglob("*.png"):
        copy = (tmp_path / "copies" / file.relative_to(insects)).with_suffix(suffix)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("RGB").resize((20, 20)).save(copy)
    taught = list_rows(trained.run_dir, "train")
    for model in (trained.run_dir, trained.run_dir / "bundle"):
        _, reporter = evaluate(model, tmp_path / "copies")
        (warning,) = reporter.warnings
        assert "38 of 38 images have the name of an image of the run" in warning
        assert f"{len(taught)} of them the name of a training image" in warning
    for row in taught:
        (tmp_path / "copies" / row["path"]).with_suffix(suffix).unlink()
    assert evaluate(trained.run_dir, tmp_path / "copies")[1].warnings == []


def test_notes_on_reading_the_data_are_told_once(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    rows = [(str(file), file.parent.name) for file in sorted(insects.rglob("*.png"))]
    for used in (rows, rows[:1] + rows[-1:]):  # the images of the run, and a few of them
        text = "".join(f"{path};{label}\n" for path, label in [("path", "label"), *used])
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        _, reporter = evaluate(trained.run_dir, tmp_path / "labels.csv")
        assert sum("separated by" in note for note in reporter.notes) == 1


def test_class_without_images_in_other_data_is_an_error(trained: FitResult, tmp_path: Path) -> None:
    (tmp_path / CLASSES[0]).mkdir()
    (tmp_path / CLASSES[1]).mkdir()
    create_noise().save(tmp_path / CLASSES[0] / "new.png")
    with pytest.raises(DataError, match=f"{CLASSES[1]} contains no image"):
        evaluate(trained.run_dir, tmp_path)


def test_checkpoint_in_a_run_folder_warns_of_training_images(
    trained: FitResult, insects: Path
) -> None:
    result, reporter = evaluate(trained.run_dir / "checkpoints" / "best.ckpt", insects)
    assert (result.evaluation.num_images, result.num_training_images) == (38, 24)
    assert "24 of 38 images" in reporter.warnings[-1]


def test_run_of_an_earlier_release_is_matched_by_path_alone_and_says_so(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    remove_digests(run)
    moved = Path(shutil.copytree(insects, tmp_path / "moved"))
    result, reporter = evaluate(run, moved)
    assert dict(result.evaluation.metrics) == dict(trained.metrics["test"])
    assert "by their paths alone" in reporter.notes[-1]
    # in place there is nothing to say
    assert "alone" not in " ".join(evaluate(run)[1].notes)


# Labels, splits and files differ


def test_images_moved_into_other_class_folders_are_evaluated_with_the_new_labels(
    own: tuple[Path, Path],
) -> None:
    run, data = own
    before, _ = evaluate(run)
    tested, trained_on = list_rows(run, "test"), list_rows(run, "train")
    new_label = {tested[0]["path"]: "fly", tested[-1]["path"]: CLASSES[0]}
    for row in (tested[0], tested[-1], trained_on[0]):
        label = new_label.get(row["path"], "fly" if row["label"] != "fly" else CLASSES[0])
        assert label != row["label"]
        (data / row["path"]).rename(data / label / f"moved {Path(row['path']).name}")
    for number in range(2):
        create_noise(seed=number).save(data / "fly" / f"new {number}.png")
    (data / trained_on[1]["path"]).unlink()
    for named in (None, data):
        result, reporter = evaluate(run, named)
        assert get_differences(result) == {
            "labels": 3, "evaluated_labels": 2, "new_images": 2, "unassigned_images": 2,
            "missing_images": 1,
        }  # fmt: skip
        assert result.evaluation.num_images == before.evaluation.num_images
        expected = [new_label.get(row["path"], row["label"]) for row in tested]
        support = {stats.name: stats.support for stats in get_class_evaluation(result).per_class}
        assert support == {name: expected.count(name) for name in CLASSES}
        assert reporter.warnings == []
        text = " ".join(reporter.notes)
        assert "3 labels (2 of the evaluated images), 2 new images, 1 missing image." in text


def test_missing_and_changed_test_images_are_told(own: tuple[Path, Path]) -> None:
    run, data = own
    tested = list_rows(run, "test")
    (data / tested[0]["path"]).unlink()
    create_noise(seed=3, width=40).save(data / tested[1]["path"])
    (data / tested[2]["path"]).write_bytes(b"no image any more")
    result, reporter = evaluate(run)
    assert result.evaluation.num_images == len(tested) - 2
    assert get_differences(result) == {"missing_images": 1, "changed_files": 2}
    assert [entry.path for entry in result.rejected] == [tested[2]["path"]]
    unreadable, missing = reporter.warnings
    assert tested[2]["path"] in unreadable
    assert "1 of 7 test images" in missing
    assert tested[0]["path"] in missing


def test_exchanged_names_do_not_exchange_the_splits(own: tuple[Path, Path]) -> None:
    run, data = own
    before, _ = evaluate(run)
    tested = {row["label"]: row["path"] for row in list_rows(run, "test")}
    taught = {row["label"]: row["path"] for row in list_rows(run, "train")}
    for name in CLASSES:
        (data / tested[name]).rename(data / "spare.png")
        (data / taught[name]).rename(data / tested[name])
        (data / "spare.png").rename(data / taught[name])
    result, _ = evaluate(run)
    assert result.evaluation == before.evaluation
    assert result.num_training_images == 0


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a run on a CSV with labels and no splits; never change it."""
    root = tmp_path_factory.mktemp("listed")
    photos = write_photos(root / "photos")
    files = sorted(photos.rglob("*.png"))
    rows = [(file.relative_to(root).as_posix(), file.parent.name) for file in files]
    file = write_csv(root / "labels.csv", [("path", "label"), *rows])
    result: FitResult = finetune.fit(
        create_small_config(data__path=str(file), output=str(root / "run"), trainer__epochs=1)
    )
    return result


def copy_listed(listed: FitResult, folder: Path) -> tuple[Path, list[list[str]]]:
    """Return a copy of the CSV with its images, and its rows."""
    root = listed.run_dir.parent
    shutil.copytree(root / "photos", folder / "photos")
    shutil.copy(root / "labels.csv", folder)
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        return folder / "labels.csv", list(csv.reader(stream))


def test_labels_mended_in_the_csv_are_those_that_are_evaluated(
    listed: FitResult,
) -> None:
    run, root = listed.run_dir, listed.run_dir.parent
    swap = {"ant": "bee", "bee": "ant", "cow": "cow"}
    original = (root / "labels.csv").read_text(encoding="utf-8")
    rows = [tuple(row) for row in csv.reader(original.splitlines()[1:])]
    before, reporter = evaluate(run)
    assert get_differences(before) == {}
    assert reporter.warnings == []
    try:
        write_csv(
            root / "labels.csv", [("path", "label"), *((path, swap[name]) for path, name in rows)]
        )
        for named in (None, root / "labels.csv", root):
            after, reporter = evaluate(run, named)
            support = {
                stats.name: stats.support for stats in get_class_evaluation(before).per_class
            }
            num_swapped = sum(name != "cow" for _, name in rows)
            assert get_differences(after) == {
                "labels": num_swapped, "evaluated_labels": support["ant"] + support["bee"],
            }  # fmt: skip
            counts = before.to_json()["confusion_matrix"]["counts"]
            expected = [counts[1], counts[0], counts[2]]
            assert after.to_json()["confusion_matrix"]["counts"] == expected
    finally:
        (root / "labels.csv").write_text(original, encoding="utf-8")


@pytest.mark.parametrize("named", ["csv", "folder", "folder without csv"])
def test_moved_csv_gives_the_metrics_of_the_run(
    listed: FitResult, tmp_path: Path, named: str
) -> None:
    file, _ = copy_listed(listed, tmp_path)
    if named == "folder without csv":
        file.unlink()
    result, reporter = evaluate(listed.run_dir, file if named == "csv" else tmp_path)
    assert dict(result.evaluation.metrics) == dict(listed.metrics["val"])
    assert result.split is Split.VAL
    assert get_differences(result) == {}
    assert len(reporter.warnings) == (named == "folder without csv")
    assert all("labels.csv" in warning for warning in reporter.warnings)


def test_csv_that_became_invalid_is_an_error_and_not_passed_over(
    listed: FitResult, tmp_path: Path
) -> None:
    file, rows = copy_listed(listed, tmp_path)
    write_csv(file, [("path", "class"), *(tuple(row) for row in rows[1:])])
    with pytest.raises(DataError, match="label"):
        evaluate(listed.run_dir, file)


def test_listed_file_that_is_gone_is_missing(listed: FitResult, tmp_path: Path) -> None:
    file, _ = copy_listed(listed, tmp_path)
    lost = list_rows(listed.run_dir, "val")[0]["path"]
    (tmp_path / lost).unlink()
    result, reporter = evaluate(listed.run_dir, file)
    assert get_differences(result) == {"missing_images": 1}
    assert lost in reporter.warnings[-1]


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a run on split folders; never change it."""
    root = tmp_path_factory.mktemp("divided")
    photos = write_photos(root / "photos")
    result: FitResult = finetune.fit(
        create_small_config(data__path=str(photos), output=str(root / "run"), trainer__epochs=1)
    )
    return result


def test_splits_of_the_data_are_read_as_they_are_now(divided: FitResult, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(divided.run_dir.parent / "photos", tmp_path / "photos"))
    (photos / "val/ant/00.png").rename(photos / "train/ant/was in val.png")
    (photos / "train/bee/00.png").rename(photos / "val/bee/was in train.png")
    create_noise(seed=5).save(photos / "val/cow/new.png")
    result, reporter = evaluate(divided.run_dir, photos)
    assert get_differences(result) == {"splits": 2, "new_images": 1}
    assert result.evaluation.num_images == 16
    assert result.num_training_images == 1
    assert "1 of 16 images is a training image" in reporter.warnings[-1]
    assert "2 splits, 1 new image." in " ".join(reporter.notes)


def test_one_split_folder_of_a_run_is_evaluated_without_a_warning(divided: FitResult) -> None:
    photos = divided.run_dir.parent / "photos"
    result, reporter = evaluate(divided.run_dir, photos / "val")
    assert dict(result.evaluation.metrics) == pytest.approx(dict(divided.metrics["val"]))
    assert (result.num_training_images, reporter.warnings) == (0, [])
    result, reporter = evaluate(divided.run_dir, photos / "train")
    assert result.num_training_images == 24
    assert "24 of 24 images" in reporter.warnings[-1]


def test_images_that_the_run_left_out_are_not_new(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    shutil.copy(photos / "val/ant/00.png", photos / "train/ant/leak.png")
    (photos / "train/bee/broken.png").write_bytes(b"no image")
    config = create_small_config(
        data__path=str(photos),
        data__leakage="drop",
        output=str(tmp_path / "run"),
        trainer__epochs=1,
    )
    fitted = finetune.fit(config)
    result, reporter = evaluate(tmp_path / "run")
    assert dict(result.evaluation.metrics) == dict(fitted.metrics["val"])
    assert get_differences(result) == {}
    assert reporter.warnings == []


def test_duplicates_that_the_run_moved_to_training_stay_there(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    shutil.copy(photos / "val/ant/00.png", photos / "train/ant/leak.png")
    config = create_small_config(
        data__path=str(photos),
        data__leakage="move",
        output=str(tmp_path / "run"),
        trainer__epochs=1,
    )
    fitted = finetune.fit(config)
    result, reporter = evaluate(tmp_path / "run", photos)
    assert dict(result.evaluation.metrics) == dict(fitted.metrics["val"])
    assert (get_differences(result), result.num_training_images) == ({}, 0)
    assert reporter.warnings == []


def test_leaked_images_are_known_at_another_place(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    shutil.copy(photos / "train/ant/00.png", photos / "val/ant/leak.png")
    config = create_small_config(
        data__path=str(photos), output=str(tmp_path / "run"), trainer__epochs=1
    )
    fitted = finetune.fit(config)
    photos.rename(tmp_path / "moved")
    result, _ = evaluate(tmp_path / "run", tmp_path / "moved")
    assert result.without_leaks is not None
    assert dict(result.without_leaks.metrics) == dict(fitted.metrics["val_without_leaks"])


def test_folder_that_no_longer_gives_labels_falls_back_to_those_of_the_run(
    divided: FitResult, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(divided.run_dir.parent / "photos", tmp_path / "photos"))
    (photos / "validation" / "ant").mkdir(parents=True)  # a second folder of the same split
    create_noise().save(photos / "validation" / "ant" / "a.png")
    result, reporter = evaluate(divided.run_dir, photos)
    assert dict(result.evaluation.metrics) == dict(divided.metrics["val"])
    (warning,) = reporter.warnings
    assert "those of the run" in warning
    assert "validation" in warning
