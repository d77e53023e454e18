"""The same command again goes on with its run; another command does not."""

import os
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
from tests.support.helpers import Recorder
from tests.support.runs import (
    assert_same_bits,
    checkpoint,
    rows,
    weights,
    write_photos,
    write_weights,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


def config_of(photos: Path, output: Path, **more: Any) -> finetune.Config:
    tree = {
        "data": {"path": str(photos), "image_size": 32, "num_workers": 0},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "augment": {"name": "light"},
        "trainer": {"epochs": 3, "batch_size": 4, "accelerator": "cpu", "precision": "32-true"},
        "output": str(output),
        "resume": "auto",
    }
    return build_config(tree, assignments=more)


class Stops:
    """Asks the process to stop at the end of a step of an epoch, both counted from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, epoch: int, step: int) -> None:
        def stop(progress: Progress, trainer: Any, *args: Any) -> None:
            if (trainer.current_epoch, args[-1]) == (epoch, step):
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Progress, "on_train_batch_end", stop)


class Probed(Recorder):
    """Keeps of how many images a probe asked the backbone."""

    computed: int | None = None

    def show_probe(self, result: Mapping[str, Any]) -> None:
        self.computed = result["num_images_computed"]


@pytest.mark.parametrize("step", [0, 3, 5])
def test_the_same_command_goes_on_in_the_middle_of_the_epoch(
    step: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = finetune.fit(config_of(photos, tmp_path / "whole")).run_dir
    again = config_of(photos, tmp_path / "run")
    with monkeypatch.context() as patch:
        Stops(patch, epoch=1, step=step)
        told = Recorder()
        with pytest.raises(StopRequest, match="SIGTERM"):
            finetune.fit(again, reporter=told)
    assert f"Stopped. Go on with: finetune fit --resume {tmp_path / 'run'}" in told.notes
    # the signal is answered after the step in which it came
    assert checkpoint(tmp_path / "run")["position"]["steps"] == step + 1
    told = Recorder()
    run = finetune.fit(again, reporter=told).run_dir
    assert f"Goes on in epoch 2, after {step + 1} of its steps." in told.notes
    assert_same_bits(weights(run), weights(expected))
    for row, other in zip(rows(run), rows(expected), strict=True):
        assert {**row, "seconds": ""} == {**other, "seconds": ""}


def test_a_step_in_other_parts_goes_on_behind_the_same_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sgd = {"optim.name": "sgd", "model.batch_norm": "frozen", "unfreeze.name": "linear_probe"}
    expected = finetune.fit(config_of(photos, tmp_path / "whole", **sgd)).run_dir
    with monkeypatch.context() as patch:
        Stops(patch, epoch=1, step=3)
        with pytest.raises(StopRequest):
            finetune.fit(config_of(photos, tmp_path / "run", **sgd))
    run = finetune.resume(
        tmp_path / "run", assignments={"trainer.accumulate_grad_batches": 2}
    ).run_dir
    for row, other in zip(rows(run), rows(expected), strict=True):
        assert float(row["train/loss"]) == pytest.approx(float(other["train/loss"]), abs=1e-5)
        assert float(row["val/loss"]) == pytest.approx(float(other["val/loss"]), abs=1e-5)


def test_a_complete_run_has_nothing_left_and_another_one_is_refused(
    photos: Path, tmp_path: Path
) -> None:
    run = finetune.fit(config_of(photos, tmp_path / "run")).run_dir
    told = Recorder()
    finetune.fit(config_of(photos, run), reporter=told)
    assert any("nothing is left to do" in note for note in told.notes)
    # longer is the same run, another learning rate is not
    finetune.fit(config_of(photos, run, **{"trainer.epochs": 4}))
    assert len(rows(run)) == 4
    with pytest.raises(ConfigError, match=r"optim\.lr is .* cannot become 0\.5"):
        finetune.fit(config_of(photos, run, **{"optim.lr": 0.5}))
    elsewhere = write_photos(tmp_path / "others")
    with pytest.raises(ConfigError, match=r"trainer\.epochs=3: the run has 4 epochs"):
        finetune.fit(config_of(elsewhere, run))


@pytest.fixture
def unequal(tmp_path: Path) -> Path:
    """Return photos of which one class has fewer."""
    photos = write_photos(tmp_path / "unequal")
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
def test_more_epochs_that_move_a_strategy_s_parts_are_told_once(
    strategy: str, before: int, now: int, unequal: Path, tmp_path: Path
) -> None:
    named = {"imbalance.strategy": strategy, "trainer.epochs": 4}
    run = finetune.fit(config_of(unequal, tmp_path / "run", **named)).run_dir
    told = Recorder()
    plan_resume(run, assignments={"trainer.epochs": 6}, reporter=told)
    (warning,) = told.warnings
    assert warning.startswith(
        f"imbalance.strategy={strategy}: its last part begins in epoch {now} of 6; before, in "
        f"epoch {before} of 4. "
    )
    # of the four epochs that are done the last was of the last part
    assert ("until then training goes back" in warning) == (now > 5)
    told = Recorder()
    finetune.resume(run, assignments={"trainer.epochs": 6}, reporter=told)
    assert told.warnings == [warning]
    told = Recorder()
    finetune.resume(run, reporter=told)
    assert told.warnings == []


@pytest.mark.parametrize("strategy", ["none", "weighted", "class_weights"])
def test_more_epochs_of_what_never_changes_are_no_matter(
    strategy: str, unequal: Path, tmp_path: Path
) -> None:
    named = {"imbalance.strategy": strategy, "trainer.epochs": 1}
    run = finetune.fit(config_of(unequal, tmp_path / "run", **named)).run_dir
    told = Recorder()
    finetune.resume(run, assignments={"trainer.epochs": 3}, reporter=told)
    assert told.warnings == []


def test_a_batch_that_shrank_is_asked_for_again(photos: Path, tmp_path: Path) -> None:
    large = config_of(photos, tmp_path / "run", **{"trainer.batch_size": 100})
    run = finetune.fit(large).run_dir
    assert read_config_file(run / "config.yaml")["trainer"]["batch_size"] == 24
    told = Recorder()
    finetune.fit(large, reporter=told)
    assert any("nothing is left to do" in note for note in told.notes)


def test_auto_said_again_is_what_it_came_to(photos: Path, tmp_path: Path) -> None:
    everything = yaml.safe_load(dump_commented_defaults())
    for key in ("val_fraction", "test_fraction"):  # the images bring a split
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
    told = Recorder()
    finetune.fit(small, reporter=told)
    assert any("nothing is left to do" in note for note in told.notes)
    finetune.resume(run, flags={"trainer.epochs": ("--epochs", "auto")}, reporter=told)
    assert len(rows(run)) == 1


@pytest.mark.parametrize("unfreeze", ["linear_probe", "all"])
def test_a_run_killed_in_its_probe_says_that_features_were_kept(
    unfreeze: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise StopRequest(signal.SIGTERM)

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    file = write_weights(tmp_path / "weights.pth")
    named = {"model.weights": str(file), "unfreeze.name": unfreeze, "trainer.epochs": 1}
    again = config_of(photos, tmp_path / "run", **named)
    with monkeypatch.context() as patch:
        patch.setattr("finetune.probe.linear_probe.fit_head", killed)
        with pytest.raises(StopRequest):
            finetune.fit(again)
    told = Probed()
    run = finetune.fit(again, reporter=told).run_dir
    (note,) = (note for note in told.notes if "No checkpoint was saved before" in note)
    assert "starts with its probe and computes only the features that were not kept" in note
    assert told.computed == 0, "all were kept"
    (run / ".done").unlink()  # as if it had been killed while it was measured
    finetune.fit(again, reporter=told)
    words = "The probe is saved; its model remains to be measured and written."
    assert (words in told.notes) == (unfreeze == "linear_probe")


def test_without_a_name_no_run_is_found(photos: Path) -> None:
    tree = {"data": {"path": str(photos)}, "resume": "auto"}
    with pytest.raises(ConfigError, match=r"resume=auto .*add --output"):
        finetune.fit(build_config(tree))


def test_something_else_in_the_folder_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match="exists and is not empty"):
        finetune.fit(config_of(photos, tmp_path / "run"))


def test_what_a_killed_process_was_writing_is_removed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = config_of(photos, tmp_path / "run")
    with monkeypatch.context() as patch:
        Stops(patch, epoch=0, step=2)
        with pytest.raises(StopRequest):
            finetune.fit(again)
    (tmp_path / "run" / "checkpoints" / ".last.ckpt.x81.part").write_bytes(b"half")
    (tmp_path / "run" / ".bundle.8.part").mkdir()
    run = finetune.fit(again).run_dir
    assert not list(run.rglob("*.part"))
