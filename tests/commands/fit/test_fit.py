"""Tests of starting, extending and resuming runs, and of fitting batches into memory."""

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
from finetune.training.callbacks.progress import Progress
from tests.support.helpers import RecordingReporter, create_noise
from tests.support.runs import assert_same_bits, compute_largest_difference, load_weights
from tests.support.runs import run_finetune as run_in_process

pytestmark = pytest.mark.usefixtures("few_penalties")


def build_run_config(data: Path, output: Path, **assignments: Any) -> finetune.Config:
    """Return the config of a run of a second, with further assignments."""
    tree = {
        "data": {"path": str(data), "image_size": 32},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "augment": {"name": "none"},
        "trainer": {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "precision": "32-true"},
        "output": str(output),
    }
    return build_config(tree, assignments=assignments)


def read_epochs(run: Path) -> list[str]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        return [row["epoch"] for row in csv.DictReader(stream)]


def fail_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let the run fail in the first step of an epoch, counted from 0."""

    def fail(self: Progress, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == epoch:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Progress, "on_train_batch_end", fail)


@pytest.mark.runs
def test_resume_extended_run_after_failure_continues(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetune.fit(build_run_config(insects, tmp_path / "run")).run_dir
    with monkeypatch.context() as patch:
        fail_in_epoch(patch, 3)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune.resume(run, assignments={"trainer.epochs": 4})
    assert read_epochs(run) == ["1", "2", "3"]
    finetune.resume(run)
    assert read_epochs(run) == ["1", "2", "3", "4"]


def test_resume_after_full_disk_has_every_epoch_in_metrics(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training.loggers import metrics_csv as loggers

    def fail(path: Path, text: str) -> None:
        if "\n2," in text:
            raise OSError(28, "No space left on device")
        path.write_text(text, encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(loggers, "write_text", fail)
        with pytest.raises(OSError, match="no space is left"):
            finetune.fit(build_run_config(insects, tmp_path / "run"))
    finetune.resume(tmp_path / "run")
    assert read_epochs(tmp_path / "run") == ["1", "2"]


@pytest.mark.runs
def test_resume_with_larger_early_stopping_patience_continues(
    insects: Path, tmp_path: Path
) -> None:
    # at this learning rate no epoch improves over the first one
    constant = {"optim.lr": 1e-9, "trainer.epochs": 20, "trainer.monitor": "accuracy"}
    run = finetune.fit(
        build_run_config(
            insects, tmp_path / "run", **constant, **{"trainer.early_stopping_patience": 1}
        )
    ).run_dir
    assert read_epochs(run) == ["1", "2"]
    (run / ".done").unlink()  # as if it had been killed before the bundle was complete
    finetune.resume(run)
    assert read_epochs(run) == ["1", "2"]
    (run / ".done").unlink()
    finetune.resume(run, assignments={"trainer.early_stopping_patience": 3})
    assert read_epochs(run) == ["1", "2", "3", "4"]


def test_latest_link_to_another_folder_is_kept(insects: Path, tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "latest").symlink_to("v1")
    finetune.fit(build_run_config(insects, tmp_path / "run", **{"trainer.epochs": 1}))
    assert (tmp_path / "latest").readlink() == Path("v1")


def test_fit_images_too_small_for_backbone_raises_model_error_and_writes_nothing(
    insects: Path, tmp_path: Path
) -> None:
    config = build_run_config(insects, tmp_path / "run", **{"model.backbone": "alexnet"})
    with pytest.raises(ModelError, match=r"'alexnet' .*32 px"):
        finetune.fit(config)
    assert not (tmp_path / "run").exists()


def test_fit_test_fraction_with_given_splits_raises_config_error(
    insects: Path, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(insects)
    with pytest.raises(ConfigError, match=r"data\.test_fraction"):
        finetune.plan_fit(build_run_config(root, tmp_path / "run", **{"data.test_fraction": 0.2}))
    plan = finetune.plan_fit(build_run_config(root, tmp_path / "run"))
    assert json.dumps(plan["data"]["num_images"]) == '{"train": 38, "val": 38, "test": 0}'


def test_fit_custom_schedule_and_loss_without_parameters(
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
    run = finetune.fit(build_run_config(insects, tmp_path / "run", **names)).run_dir
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0.5e-3)


def limit_memory(monkeypatch: pytest.MonkeyPatch, *, num_images: int) -> None:
    """Let the free memory suffice for this number of images per step."""

    def measure(training: Training) -> RunCost:
        cost = measure_run_cost(training)
        num_bytes = max(step.compute_total_bytes(num_images) for step in cost.step_costs)
        return replace(cost, free_bytes=round(num_bytes / 0.9) + 10)

    monkeypatch.setattr("finetune.commands.fit.prepare.measure_run_cost", measure)


EXACT_SETTINGS = {"optim.name": "sgd", "model.batch_norm": "frozen", "optim.lr": 0.1}
"""Training in which micro-batches change only the order of floating-point additions."""


@pytest.mark.runs
def test_fit_batch_larger_than_memory_is_split_with_the_same_result(
    insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune.fit(build_run_config(insects, tmp_path / "whole", **EXACT_SETTINGS))
    assert whole.plan["training"]["accumulate_grad_batches"] == 1
    limit_memory(monkeypatch, num_images=3)
    recorder = RecordingReporter()
    split = finetune.fit(
        build_run_config(insects, tmp_path / "split", **EXACT_SETTINGS), reporter=recorder
    )
    assert split.plan["training"]["accumulate_grad_batches"] == 4
    assert split.plan["cost"]["micro_batch_size"] == 2
    memory = split.plan["cost"]["memory_gb"]
    assert memory["total"] <= memory["free"]
    assert [note for note in recorder.notes if "batch of 8" in note and "4 micro-batches" in note]
    assert (
        compute_largest_difference(load_weights(split.run_dir), load_weights(whole.run_dir)) <= 1e-6
    )
    stored = build_config(read_config_file(split.run_dir / "config.yaml"))
    assert (stored.trainer.accumulate_grad_batches, stored.trainer.batch_size) == (4, 8)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fit_explicit_accumulation_is_kept(
    accumulate: int, insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, num_images=1)
    recorder = RecordingReporter()
    config = build_run_config(
        insects, tmp_path / "run", **{"trainer.accumulate_grad_batches": accumulate}
    )
    plan = finetune.plan_fit(config, reporter=recorder)
    assert plan["training"]["accumulate_grad_batches"] == accumulate
    assert plan["cost"]["micro_batch_size"] == 8 // accumulate
    assert not [note for note in recorder.notes if "micro-batches" in note]


@pytest.mark.runs
def test_resume_run_with_reduced_and_split_batch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 training images for a batch of 9: 4 micro-batches divide 8 and not 9
    limit_memory(monkeypatch, num_images=2)
    run = finetune.fit(
        build_run_config(photos, tmp_path / "run", **{"trainer.batch_size": 9})
    ).run_dir
    stored = build_config(read_config_file(run / "config.yaml"))
    assert (stored.trainer.accumulate_grad_batches, stored.trainer.batch_size) == (4, 8)
    finetune.resume(run, assignments={"trainer.epochs": 3})
    assert read_epochs(run) == ["1", "2", "3"]


COMPILE_SETTINGS: dict[str, Any] = {
    "model.batch_norm": "train",
    "optim.name": "sgd",
    "trainer.epochs": 1,
    "unfreeze.name": "all",
}


def run_compiled(data: Path, run: Path, *, is_on: bool, compiler: str = "") -> str:
    """Run in a process with or without torch.compile and return its output."""
    tree = build_run_config(data, run, **COMPILE_SETTINGS, **{"trainer.compile": is_on}).model_dump(
        exclude_unset=True
    )
    sections = {name: section for name, section in tree.items() if isinstance(section, dict)}
    keys = [
        f"{s}.{key}={value}" for s, section in sections.items() for key, value in section.items()
    ]
    extra = {"TORCHINDUCTOR_CACHE_DIR": str(run.parent / "inductor")}
    if compiler:
        extra["CXX"] = compiler
    process = run_in_process(run.parent, "fit", *keys, "--output", run, extra=extra)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compiled_run_equals_uncompiled_run(insects: Path, tmp_path: Path) -> None:
    output = run_compiled(insects, tmp_path / "compiled", is_on=True)
    assert "trainer.compile=true failed" not in output
    assert any((tmp_path / "inductor").rglob("*.so")), "kernels were compiled"
    assert "trainer.compile=true failed" not in run_compiled(
        insects, tmp_path / "plain", is_on=False
    )
    plain, compiled = load_weights(tmp_path / "plain"), load_weights(tmp_path / "compiled")
    assert compute_largest_difference(compiled, plain) <= 1e-4


@pytest.mark.cluster
def test_compile_without_compiler_notes_the_reason_and_continues(
    insects: Path, tmp_path: Path
) -> None:
    output = run_compiled(insects, tmp_path / "run", is_on=True, compiler="/nonexistent/c++")
    assert output.count("trainer.compile=true failed") == 1
    assert "/nonexistent/c++" in output
    assert "trainer.compile=true failed" not in run_compiled(
        insects, tmp_path / "plain", is_on=False
    )
    assert_same_bits(load_weights(tmp_path / "run"), load_weights(tmp_path / "plain"))


def write_leaked_photos(root: Path) -> Path:
    """Write splits of two classes with one validation image that is also a training image."""
    for split, numbers in (("train", range(4)), ("val", range(3, 6))):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in numbers:
                image = create_noise(
                    seed=number + 50 * (label == "dog") + 7 * (split == "val"), width=99
                )
                image.save(root / split / label / f"{number}.png")
    shutil.copyfile(root / "train/cat/0.png", root / "val/cat/leak.png")
    return root


def test_fit_leakage_drop_is_in_audit_and_rejected_files(tmp_path: Path) -> None:
    data = write_leaked_photos(tmp_path / "photos")
    run = finetune.fit(
        build_run_config(data, tmp_path / "run", **{"data.leakage": "drop", "trainer.epochs": 1})
    ).run_dir
    with (run / "rejected.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == ["train/cat/0.png"]
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        assert "train/cat/0.png" not in [row["path"] for row in csv.DictReader(stream)]
    audit = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    assert [group["conflicts"] for group in audit["duplicates"]] == [["splits"]]
    with (run / "audit.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [
            "train/cat/0.png", "val/cat/leak.png",
        ]  # fmt: skip
    before = {name: (run / name).read_bytes() for name in ("audit.json", "manifest.csv")}
    finetune.resume(run, assignments={"trainer.epochs": 2})
    assert read_epochs(run) == ["1", "2"]
    assert {name: (run / name).read_bytes() for name in before} == before


def test_fit_leakage_error_creates_no_run(tmp_path: Path) -> None:
    data = write_leaked_photos(tmp_path / "photos")
    with pytest.raises(DataError, match=r"data\.leakage=error: 1 of 7 val images"):
        finetune.fit(build_run_config(data, tmp_path / "run", **{"data.leakage": "error"}))
    assert not (tmp_path / "run").exists()
