"""What a review found in starting, lengthening and resuming runs."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.builders import Training, measure_run_cost
from finetune.builders.cost import RunCost
from finetune.config.load import build_config, read_config_file
from finetune.errors import ConfigError, DataError, ModelError
from finetune.training.callbacks.freeze_layers import Progress
from tests.support.helpers import Recorder, noise
from tests.support.runs import assert_same_bits, largest_difference, weights
from tests.support.runs import finetune as in_a_process


def config_of(data: Path, output: Path, **assignments: Any) -> finetune.Config:
    """Return a run that takes a second, with a few keys changed."""
    tree = {
        "data": {"path": str(data), "image_size": 32},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "augment": {"name": "none"},
        "trainer": {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "precision": "32-true"},
        "output": str(output),
    }
    return build_config(tree, assignments=assignments)


def epochs_in(run: Path) -> list[str]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        return [row["epoch"] for row in csv.DictReader(stream)]


def break_in(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let the run break off in the first step of an epoch, counted from 0."""

    def explode(self: Progress, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == epoch:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Progress, "on_train_batch_end", explode)


def test_a_lengthened_run_that_breaks_off_goes_on(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetune.fit(config_of(insects, tmp_path / "run")).run_dir
    with monkeypatch.context() as patch:
        break_in(patch, 3)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune.resume(run, assignments={"trainer.epochs": 4})
    assert epochs_in(run) == ["1", "2", "3"]
    finetune.resume(run)
    assert epochs_in(run) == ["1", "2", "3", "4"]


def test_a_row_that_could_not_be_written_is_not_lost(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training.loggers import experiment as loggers

    def fail(path: Path, text: str) -> None:
        if "\n2," in text:
            raise OSError(28, "No space left on device")
        path.write_text(text, encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(loggers, "write_text", fail)
        with pytest.raises(OSError, match="no space is left"):
            finetune.fit(config_of(insects, tmp_path / "run"))
    finetune.resume(tmp_path / "run")
    assert epochs_in(tmp_path / "run") == ["1", "2"]


def test_patience_is_that_of_today(insects: Path, tmp_path: Path) -> None:
    # at this learning rate no epoch is better than the first
    still = {"optim.lr": 1e-9, "trainer.epochs": 20, "trainer.monitor": "accuracy"}
    run = finetune.fit(
        config_of(insects, tmp_path / "run", **still, **{"trainer.early_stopping_patience": 1})
    ).run_dir
    assert epochs_in(run) == ["1", "2"]
    (run / ".done").unlink()  # as if it had been killed before the bundle was whole
    finetune.resume(run)
    assert epochs_in(run) == ["1", "2"]
    (run / ".done").unlink()
    finetune.resume(run, assignments={"trainer.early_stopping_patience": 3})
    assert epochs_in(run) == ["1", "2", "3", "4"]


def test_latest_never_replaces_what_is_no_run(insects: Path, tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "latest").symlink_to("v1")
    finetune.fit(config_of(insects, tmp_path / "run", **{"trainer.epochs": 1}))
    assert (tmp_path / "latest").readlink() == Path("v1")


def test_images_too_small_for_the_backbone_are_refused_before_anything_is_written(
    insects: Path, tmp_path: Path
) -> None:
    config = config_of(insects, tmp_path / "run", **{"model.backbone": "alexnet"})
    with pytest.raises(ModelError, match=r"'alexnet' cannot take images of 32 px"):
        finetune.fit(config)
    assert not (tmp_path / "run").exists()


def test_shares_of_splits_that_the_data_bring_along_are_refused(
    insects: Path, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(insects)
    with pytest.raises(ConfigError, match=r"data\.test_fraction cannot apply.*train/val"):
        finetune.plan_fit(config_of(root, tmp_path / "run", **{"data.test_fraction": 0.2}))
    plan = finetune.plan_fit(config_of(root, tmp_path / "run"))
    assert json.dumps(plan["data"]["images"]) == '{"train": 38, "val": 38, "test": 0}'


def test_a_users_own_schedule_and_loss_need_no_parameters_of_ours(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_recipe.py").write_text(
        "import torch\n"
        "def flat(progress):\n    return 0.5\n"
        "def loss(logits, target):\n    return torch.nn.functional.cross_entropy(logits, target)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = {"lr_schedule.name": "own_recipe:flat", "loss.name": "own_recipe:loss"}
    run = finetune.fit(config_of(insects, tmp_path / "run", **names)).run_dir
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0.5e-3)


def leave_room(monkeypatch: pytest.MonkeyPatch, *, images: int) -> None:
    """Let the free memory hold so many images a step, and not one more."""

    def measured(training: Training) -> RunCost:
        cost = measure_run_cost(training)
        most = max(step.compute_total_bytes(images) for step in cost.step_costs)
        return replace(cost, free_bytes=round(most / 0.9) + 10)

    monkeypatch.setattr("finetune.commands.fit.prepare.measure_run_cost", measured)


STEADY = {"optim.name": "sgd", "model.batch_norm": "frozen", "optim.lr": 0.1}
"""Training in which the order of additions alone depends on how a batch is split."""


def test_a_batch_that_does_not_fit_is_split_from_the_start_to_the_same_end(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune.fit(config_of(insects, tmp_path / "whole", **STEADY))
    assert whole.plan["training"]["accumulate"] == 1
    leave_room(monkeypatch, images=3)
    recorder = Recorder()
    split = finetune.fit(config_of(insects, tmp_path / "split", **STEADY), reporter=recorder)
    assert split.plan["training"]["accumulate"] == 4
    assert split.plan["cost"]["micro_batch_size"] == 2
    memory = split.plan["cost"]["memory_gb"]
    assert memory["total"] <= memory["free"]
    assert (
        "A batch of 8 does not fit into the memory: it runs in 4 parts, and their gradients make "
        "one step."
    ) in recorder.notes
    assert largest_difference(weights(split.run_dir), weights(whole.run_dir)) <= 1e-6
    stored = build_config(read_config_file(split.run_dir / "config.yaml"))
    assert (stored.trainer.accumulate_grad_batches, stored.trainer.batch_size) == (4, 8)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_the_user_chose_is_not_split_further(
    accumulate: int, insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room(monkeypatch, images=1)
    recorder = Recorder()
    config = config_of(insects, tmp_path / "run", **{"trainer.accumulate_grad_batches": accumulate})
    plan = finetune.plan_fit(config, reporter=recorder)
    assert plan["training"]["accumulate"] == accumulate
    assert plan["cost"]["micro_batch_size"] == 8 // accumulate
    assert not [note for note in recorder.notes if "does not fit" in note]


def test_a_batch_that_shrank_and_was_split_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 training images for a batch of 9: its quarters are none of 9
    leave_room(monkeypatch, images=2)
    run = finetune.fit(config_of(photos, tmp_path / "run", **{"trainer.batch_size": 9})).run_dir
    stored = build_config(read_config_file(run / "config.yaml"))
    assert (stored.trainer.accumulate_grad_batches, stored.trainer.batch_size) == (4, 8)
    finetune.resume(run, assignments={"trainer.epochs": 3})
    assert epochs_in(run) == ["1", "2", "3"]


COMPILING: dict[str, Any] = {
    "model.batch_norm": "train",
    "optim.name": "sgd",
    "trainer.epochs": 1,
    "unfreeze.name": "all",
}


def compiled(data: Path, run: Path, *, on: bool, compiler: str = "") -> str:
    """Run in a process with a compiler, or with one that is not there; return what was said."""
    tree = config_of(data, run, **COMPILING, **{"trainer.compile": on}).model_dump(
        exclude_unset=True
    )
    sections = {name: part for name, part in tree.items() if isinstance(part, dict)}
    keys = [f"{s}.{key}={value}" for s, part in sections.items() for key, value in part.items()]
    extra = {"TORCHINDUCTOR_CACHE_DIR": str(run.parent / "inductor")}
    if compiler:
        extra["CXX"] = compiler
    ended = in_a_process(run.parent, "fit", *keys, "--output", run, extra=extra)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_a_compiled_run_ends_as_one_without(insects: Path, tmp_path: Path) -> None:
    said = compiled(insects, tmp_path / "compiled", on=True)
    assert "trainer.compile fails" not in said
    assert any((tmp_path / "inductor").rglob("*.so")), "something was compiled"
    assert "trainer.compile" not in compiled(insects, tmp_path / "plain", on=False)
    plain, found = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert largest_difference(found, plain) <= 1e-4


@pytest.mark.slow
def test_without_a_compiler_the_reason_is_said_and_the_run_is_as_without(
    insects: Path, tmp_path: Path
) -> None:
    said = compiled(insects, tmp_path / "run", on=True, compiler="/nonexistent/c++")
    assert said.count("trainer.compile fails, and training goes on without it: ") == 1
    assert "/nonexistent/c++" in said
    assert "trainer.compile fails" not in compiled(insects, tmp_path / "plain", on=False)
    assert_same_bits(weights(tmp_path / "run"), weights(tmp_path / "plain"))


def with_a_leak(root: Path) -> Path:
    """Write splits of two classes; a validated image is trained on, too."""
    for split, numbers in (("train", range(4)), ("val", range(3, 6))):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in numbers:
                image = noise(seed=number + 50 * (label == "dog") + 7 * (split == "val"), width=99)
                image.save(root / split / label / f"{number}.png")
    shutil.copyfile(root / "train/cat/0.png", root / "val/cat/leak.png")
    return root


def test_a_run_keeps_its_audit_and_lists_what_it_dropped(tmp_path: Path) -> None:
    data = with_a_leak(tmp_path / "photos")
    run = finetune.fit(
        config_of(data, tmp_path / "run", **{"data.leakage": "drop", "trainer.epochs": 1})
    ).run_dir
    with (run / "rejected.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == ["train/cat/0.png"]
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        assert "train/cat/0.png" not in [row["path"] for row in csv.DictReader(stream)]
    audit = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    assert [group["where"] for group in audit["copies"]] == [["across splits"]]
    with (run / "audit.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [
            "train/cat/0.png", "val/cat/leak.png",
        ]  # fmt: skip
    kept = {name: (run / name).read_bytes() for name in ("audit.json", "manifest.csv")}
    finetune.resume(run, assignments={"trainer.epochs": 2})
    assert epochs_in(run) == ["1", "2"]
    assert {name: (run / name).read_bytes() for name in kept} == kept


def test_leaks_that_are_an_error_leave_no_run(tmp_path: Path) -> None:
    data = with_a_leak(tmp_path / "photos")
    with pytest.raises(DataError, match=r"1 of 7 val images have copies"):
        finetune.fit(config_of(data, tmp_path / "run", **{"data.leakage": "error"}))
    assert not (tmp_path / "run").exists()
