"""Tests of resuming runs, by ``resume`` and by repeating the command."""

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import finetune
from finetune.commands.fit.fit import plan_resume
from finetune.config.load import build_config, dump_commented_defaults, read_config_file
from finetune.distributed.signals import StopRequest
from finetune.errors import ConfigError, RunFolderError
from finetune.training.callbacks.progress import Progress
from tests.support.helpers import RecordingReporter
from tests.support.runs import (
    assert_same_bits,
    drop_times,
    load_checkpoint,
    load_weights,
    read_rows,
    write_photos,
    write_weights,
)

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]


@pytest.fixture(scope="module")
def photos(animals: Path) -> Path:
    """Return the photos of three classes; never change them."""
    return animals


def build_run_config(photos: Path, output: Path, **assignments: Any) -> finetune.Config:
    tree = {
        "data": {"path": str(photos), "image_size": 32, "num_workers": 0},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "augment": {"name": "light"},
        "trainer": {"epochs": 3, "batch_size": 4, "accelerator": "cpu", "precision": "32-true"},
        "report": {"enabled": "off"},
        "output": str(output),
        "resume": "auto",
    }
    return build_config(tree, assignments=assignments)


def stop_at(monkeypatch: pytest.MonkeyPatch, *, epoch: int, step: int) -> None:
    """Send SIGTERM to the process at the end of a step of an epoch, both counted from 0."""

    def stop(progress: Progress, trainer: Any, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == (epoch, step):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "on_train_batch_end", stop)


def raise_stop(*_: Any, **__: Any) -> None:
    """Stop the process as SIGTERM does, in place of another function."""
    raise StopRequest(signal.SIGTERM)


class ProbeRecorder(RecordingReporter):
    """Records the number of images whose features a probe computed."""

    num_computed: int | None = None

    def show_probe(self, result: Mapping[str, Any]) -> None:
        self.num_computed = result["num_images_computed"]


@pytest.fixture(scope="module")
def whole_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was never stopped; never change it."""
    return finetune.fit(build_run_config(photos, tmp_path_factory.mktemp("whole") / "run")).run_dir


@pytest.mark.parametrize("step", [0, 3, 5])
def test_fit_resume_auto_continues_within_the_epoch(
    step: int, photos: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole_run
    again = build_run_config(photos, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=1, step=step)
        recorder = RecordingReporter()
        with pytest.raises(StopRequest, match="SIGTERM"):
            finetune.fit(again, reporter=recorder)
    assert any(f"finetune fit --resume {tmp_path / 'run'}" in note for note in recorder.notes)
    # the process stops after the step in which the signal arrives
    assert load_checkpoint(tmp_path / "run")["position"]["steps"] == step + 1
    recorder = RecordingReporter()
    run = finetune.fit(again, reporter=recorder).run_dir
    assert any("epoch 2" in note and f"{step + 1} of its steps" in note for note in recorder.notes)
    assert_same_bits(load_weights(run), load_weights(expected))
    assert list(map(drop_times, read_rows(run))) == list(map(drop_times, read_rows(expected)))


def test_resume_with_other_accumulation_continues_with_the_same_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sgd = {"optim.name": "sgd", "model.batch_norm": "frozen", "unfreeze.name": "linear_probe"}
    expected = finetune.fit(build_run_config(photos, tmp_path / "whole", **sgd)).run_dir
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=1, step=3)
        with pytest.raises(StopRequest):
            finetune.fit(build_run_config(photos, tmp_path / "run", **sgd))
    run = finetune.resume(
        tmp_path / "run", assignments={"trainer.accumulate_grad_batches": 2}
    ).run_dir
    for row, other in zip(read_rows(run), read_rows(expected), strict=True):
        assert float(row["train/loss"]) == pytest.approx(float(other["train/loss"]), abs=1e-5)
        assert float(row["val/loss"]) == pytest.approx(float(other["val/loss"]), abs=1e-5)


def test_fit_resume_auto_complete_run_and_changed_settings(photos: Path, tmp_path: Path) -> None:
    run = finetune.fit(build_run_config(photos, tmp_path / "run")).run_dir
    recorder = RecordingReporter()
    finetune.fit(build_run_config(photos, run), reporter=recorder)
    assert any("complete" in note for note in recorder.notes)
    # more epochs extend the run, another learning rate is another run
    finetune.fit(build_run_config(photos, run, **{"trainer.epochs": 4}))
    assert len(read_rows(run)) == 4
    with pytest.raises(ConfigError, match=r"optim\.lr .*0\.5"):
        finetune.fit(build_run_config(photos, run, **{"optim.lr": 0.5}))
    elsewhere = write_photos(tmp_path / "others")
    with pytest.raises(ConfigError, match=r"trainer\.epochs=3: .*4"):
        finetune.fit(build_run_config(elsewhere, run))


def test_metric_of_the_best_epoch_changes_before_the_first_checkpoint_only(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, path = "checkpoint.monitor", tmp_path / "run"

    def read_monitor() -> str:
        monitor: str = read_config_file(path / "config.yaml")["checkpoint"]["monitor"]
        return monitor

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_train_epoch_start", raise_stop)
        with pytest.raises(StopRequest):
            finetune.fit(build_run_config(photos, path))
        assert read_monitor() == "calibrated_loss"
        with pytest.raises(StopRequest):
            finetune.resume(path, assignments={key: "loss"})
    finetune.resume(path, assignments={"trainer.epochs": 1})
    assert read_monitor() == load_checkpoint(path)["callbacks"]["checkpoint/best"]["monitor"][4:]
    assert read_monitor() == "loss"
    message = (
        r"checkpoint\.monitor is 'loss' .*by which its best model was chosen, "
        r"and cannot become 'accuracy'.*new run"
    )
    patience = {"trainer.epochs": 3, "trainer.early_stopping_patience": 1}
    with pytest.raises(ConfigError, match=message):
        finetune.resume(path, assignments={key: "accuracy", **patience})
    with pytest.raises(ConfigError, match=message):
        finetune.fit(build_run_config(photos, path, **{key: "accuracy", **patience}))
    for value in ("auto", "loss"):
        plan_resume(
            path, assignments={key: value, "trainer.epochs": 2}, reporter=RecordingReporter()
        )
    finetune.fit(build_run_config(photos, path, **{key: "loss", "trainer.epochs": 2}))
    finetune.resume(path, assignments={"checkpoint.every_minutes": 5, "trainer.epochs": 3})
    assert read_monitor() == "loss"
    assert read_config_file(path / "config.yaml")["checkpoint"]["every_minutes"] == 5


def test_warm_up_keeps_its_steps_when_a_run_is_resumed_with_more_epochs(
    photos: Path, tmp_path: Path
) -> None:
    # six steps per epoch, of which the warm-up takes round(0.45 * 6) = 3
    given = {"lr_schedule.name": "constant", "lr_schedule.warmup_fraction": 0.45, "optim.lr": 0.5}
    for epochs in (1, 6, 7):  # by the same command each time
        named = {**given, "optim.name": "sgd", "trainer.epochs": epochs}
        run = finetune.fit(build_run_config(photos, tmp_path / "run", **named)).run_dir
        assert load_checkpoint(run)["lr_schedulers"][0]["warmup_steps"] == 3
    assert [float(row["lr/head"]) for row in read_rows(run)] == [0.5] * 7


@pytest.fixture
def imbalanced(tmp_path: Path) -> Path:
    """Return photos in which one class has fewer images."""
    photos = write_photos(tmp_path / "imbalanced")
    for file in sorted((photos / "train" / "cow").iterdir())[3:]:
        file.unlink()
    return photos


@pytest.mark.parametrize(
    ("strategy", "before", "now"),
    [
        ("drs", 4, 5),
        ("drw", 4, 5),
        ("ldam_drw", 4, 5),
        ("abundant_first", 3, 4),
        ("progressive", 4, 6),
    ],
)
def test_resume_with_more_epochs_warns_of_shifted_imbalance_phase(
    strategy: str, before: int, now: int, imbalanced: Path, tmp_path: Path
) -> None:
    named = {"imbalance.strategy": strategy, "trainer.epochs": 4, "trainer.batch_size": 8}
    run = finetune.fit(build_run_config(imbalanced, tmp_path / "run", **named)).run_dir
    recorder = RecordingReporter()
    plan_resume(run, assignments={"trainer.epochs": 6}, reporter=recorder)
    (warning,) = recorder.warnings
    assert warning.startswith(f"imbalance.strategy={strategy}: ")
    assert f"epoch {now} of 6" in warning
    assert f"epoch {before} of 4" in warning
    # the last of the four completed epochs belongs to the last phase
    assert ("repeat" in warning) == (now > 5)
    if strategy not in ("drs", "progressive"):  # one that repeats nothing, one that does
        return
    recorder = RecordingReporter()
    finetune.resume(run, assignments={"trainer.epochs": 6}, reporter=recorder)
    assert recorder.warnings == [warning]
    recorder = RecordingReporter()
    finetune.resume(run, reporter=recorder)
    assert recorder.warnings == []


@pytest.mark.parametrize("strategy", ["none", "weighted", "class_weights"])
def test_resume_with_more_epochs_of_a_constant_strategy_warns_of_nothing(
    strategy: str, imbalanced: Path, tmp_path: Path
) -> None:
    named = {"imbalance.strategy": strategy, "trainer.epochs": 1, "trainer.batch_size": 8}
    run = finetune.fit(build_run_config(imbalanced, tmp_path / "run", **named)).run_dir
    recorder = RecordingReporter()
    finetune.resume(run, assignments={"trainer.epochs": 2}, reporter=recorder)
    assert recorder.warnings == []


def test_fit_resume_auto_accepts_the_batch_size_that_was_reduced(
    photos: Path, tmp_path: Path
) -> None:
    large = build_run_config(photos, tmp_path / "run", **{"trainer.batch_size": 100})
    run = finetune.fit(large).run_dir
    assert read_config_file(run / "config.yaml")["trainer"]["batch_size"] == 24
    recorder = RecordingReporter()
    finetune.fit(large, reporter=recorder)
    assert any("complete" in note for note in recorder.notes)


def test_fit_resume_auto_accepts_explicit_auto(photos: Path, tmp_path: Path) -> None:
    everything = yaml.safe_load(dump_commented_defaults())
    for key in ("val_fraction", "test_fraction"):  # the images have splits
        del everything["data"][key]
    small = build_config(
        everything,
        assignments={
            "data.path": str(photos),
            "output": str(tmp_path / "run"),
            "model.backbone": "test_resnet",
            "model.weights": "random",
            "trainer.epochs": 1,
            "resume": "auto",
        },
    )
    run = finetune.fit(small).run_dir
    recorder = RecordingReporter()
    finetune.fit(small, reporter=recorder)
    assert any("complete" in note for note in recorder.notes)
    assert not any("keeps" in note for note in recorder.notes)
    finetune.resume(run, flags={"trainer.epochs": ("--epochs", "auto")}, reporter=recorder)
    assert any("The run keeps trainer.epochs=1: auto" in note for note in recorder.notes)
    assert len(read_rows(run)) == 1
    with pytest.raises(ConfigError, match=r"optm: unknown key\. Did you mean 'optim'"):
        finetune.resume(run, assignments={"optm.lr": "auto"})
    plan_resume(run, assignments={"trainer.accumulate": "auto"}, reporter=recorder)
    assert any("keeps trainer.accumulate_grad_batches=1:" in note for note in recorder.notes)


@pytest.mark.parametrize("unfreeze", ["linear_probe", "all"])
def test_resume_run_killed_in_its_probe_reuses_cached_features(
    unfreeze: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    file = write_weights(tmp_path / "weights.pth")
    named = {"model.weights": str(file), "unfreeze.name": unfreeze, "trainer.epochs": 1}
    again = build_run_config(photos, tmp_path / "run", **named)
    with monkeypatch.context() as patch:
        patch.setattr("finetune.probe.linear_probe.fit_head", raise_stop)
        with pytest.raises(StopRequest):
            finetune.fit(again)
    recorder = ProbeRecorder()
    run = finetune.fit(again, reporter=recorder).run_dir
    assert [note for note in recorder.notes if "No checkpoint" in note and "probe" in note]
    assert recorder.num_computed == 0, "all features are cached"
    (run / ".done").unlink()  # as if it had been killed during the evaluation
    finetune.fit(again, reporter=recorder)
    is_noted = any("probe is saved" in note for note in recorder.notes)
    assert is_noted == (unfreeze == "linear_probe")


def test_fit_resume_auto_without_output_raises_config_error(photos: Path) -> None:
    tree = {"data": {"path": str(photos)}, "resume": "auto"}
    with pytest.raises(ConfigError, match=r"resume=auto .*--output"):
        finetune.fit(build_config(tree))


def test_fit_into_folder_with_other_files_raises_run_folder_error(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=re.escape(str(tmp_path / "run"))):
        finetune.fit(build_run_config(photos, tmp_path / "run"))


def test_resume_removes_temporary_files_of_a_killed_process(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = build_run_config(photos, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=0, step=2)
        with pytest.raises(StopRequest):
            finetune.fit(again)
    (tmp_path / "run" / "checkpoints" / ".last.ckpt.x81.part").write_bytes(b"half")
    (tmp_path / "run" / ".bundle.8.part").mkdir()
    run = finetune.fit(again).run_dir
    assert not list(run.rglob("*.part"))
