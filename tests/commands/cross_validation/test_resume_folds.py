"""Tests of changes to a cross-validation that is resumed, and of how its folder is told apart."""

import shlex
import shutil
import signal
from pathlib import Path

import pytest

import finetune
from finetune.commands.fit.fit import FitResult, plan_resume
from finetune.config.load import replace_values
from finetune.config.sections.folds import CrossValidationConfig
from finetune.distributed.signals import StopRequest
from finetune.errors import ConfigError
from tests.commands.cross_validation.test_cross_validate import build_run_config
from tests.support.helpers import InterruptingReporter, RecordingReporter
from tests.support.runs import read_rows

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def begun(insects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cross-validation of which fold 2 is complete; never change it."""
    output = tmp_path_factory.mktemp("begun") / "run"
    finetune.fit(build_run_config(insects, output, cross_validation__fold=2))
    return output


def test_repeated_command_without_folds_resumes_the_cross_validation(
    insects: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finetune.fit(build_run_config(insects, run, trainer__epochs=1, cross_validation__fold=1))
    config = build_run_config(insects, run, trainer__epochs=1, resume="auto")
    config = config.model_copy(update={"cross_validation": CrossValidationConfig()})
    result: FitResult = finetune.fit(config)
    assert result.cross_validation is not None
    assert result.cross_validation["num_folds"] == 3
    assert not (run / "metrics.csv").exists(), "no run of its own in the folder of the folds"


@pytest.mark.parametrize(
    ("moment", "fold", "signum"),
    [
        ("Fold 1 of 3", None, signal.SIGTERM),
        ("Cross-validation with 3 folds", 3, signal.SIGINT),
    ],
)
def test_stop_between_two_folds_names_the_command_that_resumes(
    moment: str, fold: int | None, signum: signal.Signals, begun: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(begun, tmp_path / "a run")
    reporter = InterruptingReporter(moment, signum)
    changes = {} if fold is None else {"cross_validation.fold": fold}
    with pytest.raises(StopRequest):
        finetune.resume(run, assignments=changes, reporter=reporter)
    (note,) = (note for note in reporter.notes if note.startswith("Stopped."))
    words = shlex.split(note.removeprefix("Stopped. Resume with: "))
    expected = ["finetune", "fit", "--resume", str(run)]
    assert words == (expected if fold is None else [*expected, "--fold", str(fold)])


def test_folds_in_the_folder_of_one_run_are_refused(insects: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    single = build_run_config(insects, run, trainer__epochs=1, cross_validation__num_folds=None)
    finetune.fit(single)
    before = (run / "config.yaml").read_text()
    folds = replace_values(single, {"cross_validation.num_folds": 3, "resume": "auto"})
    with pytest.raises(ConfigError, match=r"cross_validation\.num_folds"):
        finetune.fit(folds)
    assert (run / "config.yaml").read_text() == before


def test_refused_epochs_leave_the_run_as_it_was(begun: Path) -> None:
    before = (begun / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"Fold 2: trainer\.epochs=1.*at least 2"):
        finetune.resume(begun, assignments={"trainer.epochs": 1})
    assert (begun / "config.yaml").read_text() == before
    plan = plan_resume(begun)
    assert plan["cross_validation"]["folds"] == [1, 3]


@pytest.mark.parametrize("with_folds", [True, False])
def test_dry_run_of_a_repeated_command_tells_what_is_complete_and_what_is_left(
    with_folds: bool, insects: Path, begun: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in begun.rglob("*")}
    reporter = RecordingReporter()
    config = build_run_config(insects, begun, resume="auto")
    if not with_folds:
        config = config.model_copy(update={"cross_validation": CrossValidationConfig()})
    plan = finetune.plan_fit(config, reporter=reporter)
    assert plan["run_dir"] == str(begun)
    assert plan["cross_validation"]["complete"] == [2]
    assert plan["cross_validation"]["folds"] == [1, 3]
    (note,) = reporter.notes
    assert note.startswith(f"Resuming {begun}. ")
    assert note.endswith("3 folds: fold 2 is complete; folds 1, 3 to be trained.")
    assert {file: file.stat().st_mtime_ns for file in begun.rglob("*")} == before


def test_dry_run_tells_where_a_fold_resumes_and_what_changes(insects: Path, begun: Path) -> None:
    reporter = RecordingReporter()
    config = build_run_config(
        insects, begun, resume="auto", trainer__epochs=3, cross_validation__fold=2
    )
    plan = finetune.plan_fit(config, reporter=reporter)
    assert plan["overrides"] == {"trainer.epochs": 3}
    assert plan["cross_validation"]["folds"] == [2]
    assert reporter.notes[1:] == ["Fold 2: resuming after epoch 2."]


@pytest.mark.parametrize("part", ["", "folds/2"])
def test_learning_rate_is_refused_once_a_fold_has_begun(begun: Path, part: str) -> None:
    before = (begun / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"optim\.lr is"):
        plan_resume(begun / part, assignments={"optim.lr": 0.5})
    with pytest.raises(ConfigError, match=r"optim\.lr is"):
        finetune.resume(begun / part, assignments={"optim.lr": 0.5})
    assert (begun / "config.yaml").read_text() == before
    assert len(read_rows(begun / "folds" / "2")) >= 2


def test_layers_of_a_cross_validation_are_refused(insects: Path, begun: Path) -> None:
    config = build_run_config(insects, begun)
    with pytest.raises(ConfigError, match="--layers cannot apply to a cross-validation"):
        finetune.plan_fit(config, with_layers=True)
    with pytest.raises(ConfigError, match="--layers cannot apply to a cross-validation"):
        plan_resume(begun, with_layers=True)
