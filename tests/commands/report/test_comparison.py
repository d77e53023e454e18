"""Tests of the comparison of runs: shared images, refusals and settings that differ."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune.commands.fit.fit import FitResult
from finetune.commands.report.report import check_same_classes, report
from finetune.errors import ConfigError
from finetune.report.comparison.changed_section import build_changed
from finetune.report.comparison.comparison_page import render_comparison
from finetune.report.comparison.paired_section import build_paired
from finetune.report.comparison.runs_section import build_differences, label_runs
from finetune.report.comparison.shared_images import match_images
from finetune.report.run_facts import RunFacts, SplitPredictions
from tests.support.helpers import ROOT
from tests.support.reports import build_predictions, draw_probabilities

CLASSES = ("ant", "bee", "cow")
TARGET = np.arange(30) % 3
OLD_RUN = ROOT / "tests" / "files" / "run_0_1_0"


def build_facts(
    name: str,
    *,
    seed: int,
    paths: list[str] | None = None,
    digests: list[str] | None = None,
    classes: tuple[str, ...] = CLASSES,
) -> RunFacts:
    """Return facts of a run with predictions of 30 validation images."""
    paths = [f"{row}.png" for row in range(30)] if paths is None else paths
    order = [classes.index(one) for one in CLASSES]
    table = draw_probabilities(TARGET, 3, np.random.default_rng(seed))
    target = np.array(order)[TARGET]
    predictions = SplitPredictions(
        paths, digests or [""] * 30, np.arange(30), target, table[:, np.argsort(order)]
    )
    return RunFacts(name=name, path=name, classes=classes, predictions={"val": predictions})


def test_runs_share_the_images_of_equal_paths_and_labels() -> None:
    first = build_facts("a", seed=0)
    # image 9 is the second run's first row, of the same class; the first run lacks the last nine
    second = build_facts("b", seed=1, paths=[f"{row}.png" for row in range(9, 39)])
    shared = match_images(first, second, "val")
    assert shared is not None
    assert list(shared.paths) == [f"{row}.png" for row in range(9, 30)]
    assert shared.target.tolist() == TARGET[9:].tolist()
    assert shared.before == pytest.approx(first.predictions["val"].probabilities[9:])
    assert shared.after == pytest.approx(second.predictions["val"].probabilities[:21])
    assert (shared.num_relabelled, shared.num_only_one) == (0, 18)
    # with image 10 first, every shared image has another class: 10 % 3 = 1, 0 % 3 = 0
    moved = build_facts("c", seed=1, paths=[f"{row}.png" for row in range(10, 40)])
    relabelled = match_images(first, moved, "val")
    assert relabelled is not None
    assert len(relabelled.paths) == 0
    assert (relabelled.num_relabelled, relabelled.num_only_one) == (20, 20)


def test_runs_with_classes_in_another_order_have_the_same_predictions() -> None:
    first = build_facts("a", seed=0)
    second = build_facts("b", seed=0, classes=("cow", "ant", "bee"))
    shared = match_images(first, second, "val")
    assert shared is not None
    assert len(shared.paths) == 30
    assert shared.after == pytest.approx(shared.before)
    assert shared.target.tolist() == TARGET.tolist()


def test_runs_of_moved_data_share_images_by_digest() -> None:
    digests = [f"digest {row}" for row in range(30)]
    first = build_facts("a", seed=0, digests=digests)
    moved = [f"new/{row}.png" for row in range(30)]
    second = build_facts("b", seed=1, paths=moved, digests=digests)
    shared = match_images(first, second, "val")
    assert shared is not None
    assert len(shared.paths) == 30
    changed = build_facts("c", seed=1, digests=[f"{digest}!" for digest in digests])
    other = match_images(first, changed, "val")
    assert other is not None
    assert len(other.paths) == 0  # the same names of other files


def test_paired_test_counts_the_images_of_one_run_only() -> None:
    runs = [build_facts("a", seed=0), build_facts("b", seed=1)]
    [test] = build_paired(runs).tests
    correct = [run.predictions["val"].probabilities.argmax(axis=1) == TARGET for run in runs]
    gained, lost = int((correct[1] & ~correct[0]).sum()), int((correct[0] & ~correct[1]).sum())
    assert gained + lost > 0
    assert f"b alone is right on {gained} image" in test.changes
    assert f"a alone on {lost} (" in test.changes
    changed = build_changed(runs)
    assert changed is not None
    kinds = [image.kind for image in changed.lists[0].images]
    assert (kinds.count("now right"), kinds.count("now wrong")) == (gained, lost)


def test_runs_without_shared_images_or_predictions_are_told_as_not_comparable() -> None:
    first = build_facts("a", seed=0)
    second = build_facts("b", seed=1, paths=[f"other/{row}.png" for row in range(30)])
    [test] = build_paired([first, second]).tests
    assert test.images.startswith("Not comparable")
    assert test.rows == ()
    [test] = build_paired([first, replace(second, predictions={})]).tests
    assert "b has no stored predictions" in test.images
    assert build_changed([first, replace(second, predictions={})]) is None


def test_runs_of_different_classes_are_refused_with_the_difference() -> None:
    first = build_facts("a", seed=0)
    second = replace(build_facts("b", seed=0), classes=("ant", "bee", "dog"))
    with pytest.raises(ConfigError, match=r"only a has 'cow'; only b has 'dog'"):
        check_same_classes([first, second])
    labels = replace(first, card={"thresholds": [0.5, 0.5, 0.5]}, path="labels")
    with pytest.raises(ConfigError, match="any number of labels"):
        check_same_classes([first, labels])


def test_differences_leave_out_what_a_run_does_not_learn_by() -> None:
    first = RunFacts(name="a", path="x/a", config={"optim.lr": 0.1, "output": "a", "seed": 0})
    second = RunFacts(name="a", path="y/a", config={"optim.lr": 0.2, "output": "b", "seed": 0})
    section = build_differences([first, second, RunFacts(name="c", path="c")])
    assert section.rows == (("optim.lr", ("0.1", "0.2")),)
    # with those that are not compared, as many as the page of a run lists
    assert section.num_equal + len(section.rows) + section.num_uncompared == len(first.config)
    assert (section.num_equal, section.num_uncompared) == (1, 1)
    assert section.labels == ("x/a", "y/a")
    assert section.missing == ("c",)
    assert label_runs([first, first]) == ("x/a (1)", "x/a (2)")


def test_write_report_of_python_takes_one_run_or_several(tmp_path: Path) -> None:
    page = finetune.write_report(OLD_RUN, output=tmp_path / "one.html", images=False)
    assert page.output.read_text(encoding="utf-8").count("<img") == 0
    assert page.runs == (str(OLD_RUN),)
    copy = shutil.copytree(OLD_RUN, tmp_path / "copy")
    both = finetune.write_report([OLD_RUN, str(copy)], output=tmp_path / "two.html")
    assert "Comparison of runs" in both.output.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="split='train': unknown split"):
        finetune.write_report(OLD_RUN, split="train")
    with pytest.raises(ConfigError, match="is given twice"):
        finetune.write_report([OLD_RUN, str(OLD_RUN)])
    with pytest.raises(ConfigError, match="No run was given"):
        finetune.write_report([])


def test_report_of_several_runs_is_written_to_the_working_folder(
    trained: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained.run_dir, copy, ignore=shutil.ignore_patterns("checkpoints"))
    monkeypatch.chdir(tmp_path)
    result = report([trained.run_dir, copy])
    assert result.output == Path("comparison.html")
    page = result.output.read_text(encoding="utf-8")
    assert re.search(r"All \d+ settings that affect the training are equal", page)
    with pytest.raises(ConfigError, match="their classes differ"):
        report([trained.run_dir, OLD_RUN])


def test_runs_on_multi_label_images_are_tested_with_labels_in_any_order() -> None:
    def build(name: str, classes: tuple[str, ...], shift: float) -> RunFacts:
        random = np.random.default_rng(4)
        labels = random.random((30, 3)) < 0.4
        table = 1 / (1 + np.exp(-np.where(labels, shift, -shift) - random.normal(0, 1, (30, 3))))
        order = [CLASSES.index(one) for one in classes]
        target = labels.astype(float)[:, order]
        paths = [f"{row}.png" for row in range(30)]
        found = SplitPredictions(paths, [""] * 30, np.arange(30), target, table[:, order])
        card = {"task": "multi_label", "thresholds": [0.5, 0.5, 0.5]}
        return RunFacts(
            name=name, path=name, classes=classes, card=card, predictions={"val": found}
        )

    runs = [build("a", CLASSES, 0.5), build("b", ("cow", "ant", "bee"), 2.0)]
    [test] = build_paired(runs).tests
    assert test.rows[0].metric == "Mean average precision"
    assert test.rows[0].verdict == "better"
    assert test.images.startswith("On 30 validation images")
    assert "b alone is right" in test.changes
    changed = build_changed(runs)
    assert changed is not None
    [listed] = changed.lists
    first, second = (run.predictions["val"] for run in runs)
    after = second.probabilities[:, [1, 2, 0]]  # in the order of the first run
    is_changed = (first.probabilities >= 0.5) != (after >= 0.5)
    expected = {first.paths[row] for row in np.flatnonzero(is_changed.any(axis=1)).tolist()}
    assert listed.num_changed == len(expected) > 5
    assert set(changed.paths) == expected
    page = render_comparison(runs, version="1")
    assert f"{len(expected)} of 30 predictions differ in a label or more." in page
    assert "True labels" in page


def test_folds_are_compared_at_the_thresholds_of_each_image() -> None:
    target = np.array([[1, 0, 0]] * 3)
    tables = np.full((2, 3, 3), 0.1)
    tables[:, :, 0] = [[0.4], [0.6]]
    limits = np.full((3, 3), 0.5)
    limits[:, 0] = [0.3, 0.45, 0.45]  # of the first run, whose card has lower ones
    one, other = (build_predictions(target, table) for table in tables)
    order = [2, 0, 1]
    moved = replace(  # the same images, turned round, with labels in another order
        other,
        paths=other.paths[::-1],
        target=target[:, order],
        probabilities=other.probabilities[:, order],
        thresholds=np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.7, 0.5]]),
    )
    runs = [
        RunFacts(
            name=name, path=name, classes=classes, card={"thresholds": [0.2] * 3},
            predictions={"out_of_fold": found},
        )
        for name, classes, found in (
            ("a", CLASSES, replace(one, thresholds=limits)),
            ("b", tuple(CLASSES[index] for index in order), moved),
        )
    ]  # fmt: skip
    # the first run is right on 0.png, the second one on 1.png and 2.png
    [test] = build_paired(runs).tests
    assert "b alone is right in all labels on 2 images, a alone on 1 (" in test.changes
    changed = build_changed(runs)
    assert changed is not None
    kinds = {image.path: image.kind for image in changed.lists[0].images}
    assert kinds == {
        "0.png": "now wrong: ant dropped",
        "1.png": "now right: ant added",
        "2.png": "now right: ant added",
    }


def test_changed_labels_of_an_image_are_named_by_the_thresholds_of_each_run() -> None:
    target = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    tables = (
        [[0.9, 0.3, 0.2], [0.1, 0.1, 0.1], [0.9, 0.9, 0.1], [0.6, 0.1, 0.1]],
        [[0.9, 0.3, 0.6], [0.1, 0.1, 0.4], [0.2, 0.9, 0.1], [0.1, 0.1, 0.9]],
    )
    runs = [
        RunFacts(
            name=name, path=name, classes=CLASSES, card={"thresholds": [0.5, 0.5, limit]},
            predictions={"test": build_predictions(target, table)},
        )
        for name, table, limit in zip("ab", tables, (0.5, 0.35), strict=True)
    ]  # fmt: skip
    changed = build_changed(runs)
    assert changed is not None
    images = changed.lists[0].images
    found = {one.path: (one.label, one.before, one.after, one.kind) for one in images}
    assert found == {
        "3.png": ("bee", "ant (60%)", "cow (90%)", "as many wrong: cow added; ant dropped"),
        "2.png": ("ant, bee", "ant (90%), bee (90%)", "bee (90%)", "now wrong: ant dropped"),
        "0.png": ("ant, cow", "ant (90%)", "ant (90%), cow (60%)", "now right: cow added"),
        "1.png": ("none", "none", "cow (40%)", "now wrong: cow added"),
    }
    assert list(found) == ["3.png", "2.png", "0.png", "1.png"], "the largest change first"
