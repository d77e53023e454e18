"""Tests of ``finetune.commands.tune.tune``: whole studies of tiny networks."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.bundle.model_card import read_card_json
from finetune.commands.tune.space.search_space import SearchDimension, parse_search_options
from finetune.commands.tune.study_folder import StudyFolder
from finetune.commands.tune.study_plan import build_space_rows
from finetune.commands.tune.trials import trial_queue
from finetune.commands.tune.trials.trial_row import TrialRow
from finetune.commands.tune.tune import TuneOptions, plan_tune, resume_tune, tune
from finetune.commands.tune.tune_result import TuneResult
from finetune.config.load import build_config, read_config_file
from finetune.data.manifest import read_manifest
from finetune.distributed.signals import StopRequest
from finetune.errors import ConfigError, DataError, RunFolderError
from finetune.types import Split
from tests.commands.tune.conftest import NUM_IMAGES, build_scratch_config, write_classes
from tests.support.helpers import InterruptingReporter, RecordingReporter, list_names
from tests.support.runs import assert_same_bits, load_weights, read_rows

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

RATES = (SearchDimension("optim.lr", (), 1e-3, 1e-2, is_log=True),)
TINY_RATES = (SearchDimension("optim.lr", (), 1e-9, 1e-8, is_log=True),)


@pytest.fixture(scope="module")
def study(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """Return a finished study of three trials, the default one hopeless; never change it."""
    output = tmp_path_factory.mktemp("studies") / "rates"
    return tune(build_scratch_config(classes, output), TuneOptions(num_trials=3, space=RATES))


def get_best(result: TuneResult) -> TrialRow:
    """Return the best trial of a study, which is another than the default one."""
    assert result.best is not None
    assert not result.best.is_default
    return result.best


def get_values(result: TuneResult) -> list[tuple[Any, ...]]:
    """Return what must not depend on interruptions."""
    return [(r.number, r.state, r.value, r.epochs, dict(r.values)) for r in result.trials]


def test_tune_first_trial_is_default_and_best_is_another(study: TuneResult) -> None:
    assert [row.number for row in study.trials] == [1, 2, 3]
    assert [row.is_default for row in study.trials] == [True, False, False]
    best = get_best(study)
    assert best.value == min(row.value or 9.0 for row in study.trials)
    assert 1e-3 <= best.values["optim.lr"] <= 1e-2
    stored = read_config_file(study.study_dir / "trials" / f"{best.number:03}" / "config.yaml")
    assert stored["optim"]["lr"] == best.values["optim.lr"]
    first = read_config_file(study.study_dir / "trials" / "001" / "config.yaml")
    assert first["optim"]["lr"] == 1e-7


def test_tune_trials_share_a_split_without_the_hold_out(study: TuneResult, classes: Path) -> None:
    whole = read_manifest(study.study_dir / "manifest.csv", root=classes)
    tables = [
        read_manifest(study.study_dir / "trials" / f"{number:03}" / "manifest.csv", root=classes)
        for number in (1, get_best(study).number)
    ]
    assert tables[0] == tables[1]
    assert tables[0].get_samples(Split.TEST) == []
    for split in (Split.TRAIN, Split.VAL):
        assert tables[0].get_samples(split) == whole.get_samples(split)
    assert len(whole.get_samples(Split.TEST)) == 3 * round(0.2 * NUM_IMAGES)


def test_tune_gain_is_measured_on_the_hold_out(study: TuneResult, classes: Path) -> None:
    assert study.gain is not None
    # too few validation images for a temperature, so that "auto" is off
    assert not study.gain.is_calibrated
    assert "Without calibration that is another metric" in study.summary
    compared = study.gain.held_out
    whole = read_manifest(study.study_dir / "manifest.csv", root=classes)
    test = whole.get_samples(Split.TEST)
    assert compared.num_images == len(test)
    assert study.gain.validation.num_images == len(whole.get_samples(Split.VAL))
    # the independent way: predict the files with the two models
    for number, name in ((1, "before"), (get_best(study).number, "after")):
        run = study.study_dir / "trials" / f"{number:03}"
        correct = sum(
            finetune.predict(run, whole.root / sample.path).predictions[0].labels[0] == sample.label
            for sample in test
        )
        value = getattr(compared.differences["accuracy"], name)
        assert value == pytest.approx(correct / len(test))


def test_tune_files_of_losing_trials_are_small(study: TuneResult) -> None:
    loser = {1, 2, 3} - {1, get_best(study).number}
    (number,) = loser
    folder = study.study_dir / "trials" / f"{number:03}"
    assert list_names(folder) == ["config.yaml", "metrics.csv"]
    for kept in (1, get_best(study).number):
        assert (study.study_dir / "trials" / f"{kept:03}" / "bundle").is_dir()


def test_tune_writes_result_and_table(study: TuneResult) -> None:
    tree = json.loads((study.study_dir / "tune.json").read_text())
    expected = json.loads(json.dumps(study.to_json()))
    # tests that resume the study write the file again, after another time
    assert {**tree, "seconds": 0} == {**expected, "seconds": 0}
    assert tree["gain"]["summary"]
    with (study.study_dir / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["value"]) for row in rows] == [row.value for row in study.trials]
    assert [row["default"] for row in rows] == ["True", "False", "False"]
    assert {float(row["optim.lr"]) for row in rows[1:]} == {
        row.values["optim.lr"] for row in study.trials[1:]
    }


def test_tune_stopped_after_the_trials_names_the_command_that_continues(study: TuneResult) -> None:
    reporter = InterruptingReporter("comparing on test")
    with pytest.raises(StopRequest):
        resume_tune(study.study_dir, reporter=reporter)
    command = f"finetune tune --resume {study.study_dir}"
    assert reporter.notes[-1] == f"Stopped. Continue with: {command}"


def test_tune_best_config_repeats_the_best_trial_bit_for_bit(
    study: TuneResult, tmp_path: Path
) -> None:
    best = get_best(study)
    tree = read_config_file(study.study_dir / "best.yaml")
    assert tree["optim"] == {"lr": best.values["optim.lr"]}
    assert "output" not in tree
    config = build_config(
        tree, assignments={"data.test_fraction": 0.2, "output": str(tmp_path / "run")}
    )
    again = finetune.fit(config)
    trial = study.study_dir / "trials" / f"{best.number:03}"
    assert_same_bits(load_weights(again.run_dir), load_weights(trial))
    assert_same_bits(load_weights(again.run_dir, "best"), load_weights(trial, "best"))
    assert (
        read_card_json(again.run_dir / "bundle")["temperature"]
        == (read_card_json(trial / "bundle")["temperature"])
    )


def test_resume_tune_complete_study_reports_the_same(study: TuneResult) -> None:
    recorder = RecordingReporter()
    again = resume_tune(study.study_dir, TuneOptions(num_trials=2), reporter=recorder)
    assert "--trials 2 begins none: the study has 3 trials already" in recorder.notes[0]
    assert again.settings.num_trials == 3
    assert get_values(again) == get_values(study)
    assert again.gain == study.gain


@pytest.mark.slow
def test_tune_stopped_in_a_trial_continues_to_the_same_trials(
    study: TuneResult, classes: Path, tmp_path: Path
) -> None:
    output, reporter = tmp_path / "rates", InterruptingReporter("trial 2/3, epoch 2/2")
    options = TuneOptions(num_trials=3, space=RATES)
    with pytest.raises(StopRequest):
        tune(build_scratch_config(classes, output), options, reporter=reporter)
    assert reporter.notes[-1] == f"Stopped. Continue with: finetune tune --resume {output}"
    assert (output / "trials" / "002" / "checkpoints" / "last.ckpt").is_file()
    recorder = RecordingReporter()
    result = resume_tune(output, reporter=recorder)
    assert get_values(result) == get_values(study)
    assert result.gain == study.gain
    ended = [note for note in recorder.notes if note.startswith("trial ")]
    assert [note.partition(":")[0] for note in ended] == ["trial 2/3", "trial 3/3"]


@pytest.mark.slow
def test_resume_tune_with_more_trials_continues(classes: Path, tmp_path: Path) -> None:
    output = tmp_path / "study"
    config = build_scratch_config(classes, output, trainer__epochs=1)
    assert len(tune(config, TuneOptions(num_trials=2, space=RATES)).trials) == 2
    assert len(resume_tune(output, TuneOptions(num_trials=3)).trials) == 3
    assert len(resume_tune(output).trials) == 3, "the number is kept"


@pytest.mark.slow
def test_tune_prunes_trials_worse_than_the_median(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_queue, "PRUNING_STARTUP_TRIALS", 1)
    config = build_scratch_config(
        classes, tmp_path / "study", optim__lr=5e-3, trainer__epochs=4, trainer__monitor="loss"
    )
    result = tune(config, TuneOptions(num_trials=2, space=TINY_RATES))
    default, pruned = result.trials
    assert pruned.state == "pruned"
    assert pruned.value is None
    assert pruned.epochs == 2, "the first epoch that ends after three tenths"
    folder = result.study_dir / "trials" / "002"
    assert len(read_rows(folder)) == 2
    assert list_names(folder) == ["config.yaml", "metrics.csv"]
    assert result.best == default
    assert result.gain is None
    assert "No trial was better" in (result.study_dir / "best.yaml").read_text()
    assert result.next_command[-1] == "data.test_fraction=0", "with the images set aside"
    assert result.next_command[-2] == str(result.study_dir / "base.yaml")


@pytest.mark.slow
def test_tune_failing_trial_is_recorded_and_others_go_on(classes: Path, tmp_path: Path) -> None:
    # mixing needs two images at a time
    space = (SearchDimension("augment.mixup", (0.3, 0.2)),)
    config = build_scratch_config(
        classes, tmp_path / "study", trainer__batch_size=1, trainer__epochs=1, optim__lr=1e-3,
        model__batch_norm="frozen",
    )  # fmt: skip
    recorder = RecordingReporter()
    result = tune(config, TuneOptions(num_trials=2, space=space), reporter=recorder)
    assert [row.state for row in result.trials] == ["completed", "failed"]
    assert "augment.mixup" in result.trials[1].reason
    assert any("trial 2/2: failed" in note for note in recorder.notes)


def test_tune_failing_default_trial_raises(classes: Path, tmp_path: Path) -> None:
    config = build_scratch_config(
        classes, tmp_path / "study", loss__params={"gamma": 2.0}, trainer__epochs=1
    )
    with pytest.raises(ConfigError, match=r"loss\.params"):
        tune(config, TuneOptions(num_trials=2, space=RATES))


@pytest.mark.slow
def test_tune_same_values_are_trained_once(classes: Path, tmp_path: Path) -> None:
    space = (SearchDimension("optim.lr", (1e-7, 1e-3)),)
    recorder = RecordingReporter()
    config = build_scratch_config(classes, tmp_path / "study", trainer__epochs=1)
    result = tune(config, TuneOptions(num_trials=5, space=space), reporter=recorder)
    trained = [row for row in result.trials if row.same_as is None]
    assert len({str(row.values) for row in trained}) == len(trained) == 2
    for row in result.trials:
        same = result.trials[(row.same_as or row.number) - 1]
        assert (row.values, row.value, row.metrics) == (same.values, same.value, same.metrics)
    assert get_best(result).same_as is None
    assert any(note.endswith("as default: the same values") for note in recorder.notes)
    assert any("as trial" in note for note in recorder.notes)


@pytest.mark.slow
def test_tune_timeout_begins_no_further_trial(classes: Path, tmp_path: Path) -> None:
    recorder = RecordingReporter()
    config = build_scratch_config(classes, tmp_path / "study", trainer__epochs=1)
    options = TuneOptions(num_trials=5, timeout_seconds=0.01, space=RATES)
    result = tune(config, options, reporter=recorder)
    assert len(result.trials) == 1
    assert any("--timeout" in note for note in recorder.notes)
    assert "Only the trial with the default settings has ended" in result.summary
    assert result.next_command == []
    text = (result.study_dir / "best.yaml").read_text()
    assert "Best of 1 trial of" in text
    assert "No trial was better" not in text


@pytest.mark.slow
def test_tune_best_config_says_that_a_given_hold_out_stays_one(
    classes: Path, tmp_path: Path, study: TuneResult
) -> None:
    assert "fit uses them" in (study.study_dir / "best.yaml").read_text()
    config = build_scratch_config(
        classes, tmp_path / "study", trainer__epochs=1, data__test_fraction=0.25
    )
    result = tune(config, TuneOptions(num_trials=2, space=RATES))
    text = (result.study_dir / "best.yaml").read_text()
    assert read_config_file(result.study_dir / "best.yaml")["data"]["test_fraction"] == 0.25
    assert "25% of the images for it, and so does fit" in text
    assert "fit uses them" not in text


def test_tune_given_validation_split_is_halved(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_classes(data / "train", num_images=6)
    write_classes(data / "val", num_images=8, first_seed=5)
    plan = plan_tune(build_scratch_config(data, tmp_path / "study"), TuneOptions(space=RATES))
    tree = plan.to_json()
    assert tree["num_images"] == {"train": 18, "val": 12, "test": 12}
    assert "half of the validation split" in tree["hold_out"]
    assert not (tmp_path / "study").exists()
    write_classes(data / "test", num_images=4, first_seed=6)
    tree = plan_tune(build_scratch_config(data, tmp_path / "study")).to_json()
    assert tree["num_images"] == {"train": 18, "val": 24, "test": 12}
    assert tree["hold_out"] == "12 images, the test split"


@pytest.mark.slow
def test_resume_tune_changed_images_raise(classes: Path, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", num_images=6)
    config = build_scratch_config(data, tmp_path / "study", trainer__epochs=1)
    tune(config, TuneOptions(num_trials=2, space=RATES))
    next((data / "ant").iterdir()).unlink()
    with pytest.raises(DataError, match="not those with which the study began"):
        resume_tune(tmp_path / "study", TuneOptions(num_trials=3))


def test_study_is_no_model_and_its_trials_are(study: TuneResult) -> None:
    with pytest.raises(RunFolderError, match=r"trials/001 has the default settings.*best\.yaml"):
        finetune.evaluate(study.study_dir)


def test_plan_names_defaults_that_are_not_measured(classes: Path, tmp_path: Path) -> None:
    space, _ = parse_search_options(
        ["model.drop_rate=null,0.5", "optim.lr=1e-4:1:log", "loss.params.gamma=1:3"]
    )
    config = build_scratch_config(classes, tmp_path / "study", optim__lr="auto", loss__name="focal")
    plan = plan_tune(config, TuneOptions(space=tuple(space)))
    values = {key: text for key, text, _ in build_space_rows(plan)}
    assert values["model.drop_rate"] == "null, 0.5 (null: default of the backbone)"
    rows = {key: default for key, _, default in build_space_rows(plan)}
    assert rows["model.drop_rate"] == "default of the backbone"
    assert rows["loss.params.gamma"] == "built-in"


def test_resume_command_is_quoted(tmp_path: Path) -> None:
    command = StudyFolder(tmp_path / "k one").resume_command
    assert shlex.split(command) == ["finetune", "tune", "--resume", str(tmp_path / "k one")]


def test_resume_tune_other_folder_raises(tmp_path: Path, classes: Path) -> None:
    with pytest.raises(RunFolderError, match="not the folder of a study"):
        resume_tune(classes)
    with pytest.raises(RunFolderError, match="does not exist"):
        resume_tune(tmp_path / "none")


@pytest.mark.parametrize(
    ("assignments", "part"),
    [
        ({"trainer__devices": 2}, "--jobs"),
        ({"cross_validation__num_folds": 5}, "cross_validation.num_folds"),
        ({"resume": "auto"}, "--resume"),
    ],
)
def test_tune_inapplicable_setting_raises(
    assignments: dict[str, Any], part: str, classes: Path, tmp_path: Path
) -> None:
    config = build_scratch_config(classes, tmp_path / "study", **assignments)
    with pytest.raises(ConfigError) as caught:
        tune(config, TuneOptions(num_trials=2, space=RATES))
    assert part in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_tune_several_processes_of_a_launcher_raise(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"--jobs"):
        tune(build_scratch_config(classes, tmp_path / "study"), TuneOptions(space=RATES))
