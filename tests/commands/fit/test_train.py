"""Tests of running out of memory: smaller micro-batches, and the result of a run with them."""

import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import finetune
from finetune.builders import get_micro_batch_size
from finetune.commands.fit.micro_batch_reduction import reduce_micro_batch
from finetune.config.load import build_config, read_config_file
from finetune.config.schema import Config
from finetune.distributed.signals import StopRequest
from finetune.errors import OutOfMemoryError
from finetune.models.classifier import ImageClassifier
from finetune.training.callbacks.progress import Progress
from tests.support.helpers import RecordingReporter
from tests.support.runs import (
    assert_same_bits,
    compute_largest_difference,
    create_small_config,
    create_small_training,
    load_weights,
    read_rows,
    write_photos,
    write_weights,
)
from tests.support.runs import run_finetune as run_in_process
from tests.support.wandb_file import read_offline_runs

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

CUDA_ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.\nSee documentation"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def build_run_config(data: Path, output: Path, pretrained: Path, **more: Any) -> Config:
    """Return a run in which micro-batches change only the order of floating-point additions."""
    settings: dict[str, Any] = {
        "data__path": str(data),
        "model__weights": str(pretrained),
        "model__batch_norm": "frozen",
        "unfreeze__name": "all",
        "probe__enabled": "off",
        "optim__name": "sgd",
        "optim__lr": 0.1,
        "optim__backbone_lr_scale": 1.0,
        "optim__layer_decay": 1.0,
        "trainer__epochs": 3,
        "output": str(output),
    }
    return create_small_config(**{**settings, **more})


def limit_memory(monkeypatch: pytest.MonkeyPatch, *, epoch: int, num_images: int) -> None:
    """Limit the memory to a number of images, from an epoch on, counted from 0."""
    forward = ImageClassifier.forward
    started = Progress.on_train_epoch_start
    is_limited = False

    def start(self: Progress, trainer: Any, pl_module: Any) -> None:
        nonlocal is_limited
        is_limited = is_limited or trainer.current_epoch == epoch
        started(self, trainer, pl_module)

    def run_out(self: ImageClassifier, images: Tensor) -> Tensor:
        if is_limited and self.training and len(images) > num_images:
            raise torch.OutOfMemoryError(CUDA_ERROR)
        return forward(self, images)

    monkeypatch.setattr(Progress, "on_train_epoch_start", start)
    monkeypatch.setattr(ImageClassifier, "forward", run_out)


def read_stored_config(run: Path) -> Config:
    return build_config(read_config_file(run / "config.yaml"))


@pytest.mark.parametrize("epoch", [0, 1])
def test_out_of_memory_halves_micro_batch_with_the_same_result(
    epoch: int, animals: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune.fit(build_run_config(animals, tmp_path / "whole", pretrained)).run_dir
    half = finetune.fit(
        build_run_config(animals, tmp_path / "half", pretrained, trainer__accumulate_grad_batches=2)
    ).run_dir
    limit_memory(monkeypatch, epoch=epoch, num_images=4)
    recorder = RecordingReporter()
    run = finetune.fit(
        build_run_config(animals, tmp_path / "run", pretrained), reporter=recorder
    ).run_dir

    notes = [note for note in recorder.notes if "Out of memory" in note]
    assert len(notes) == 1
    assert "batch of 8" in notes[0]
    assert "2 micro-batches" in notes[0]
    assert recorder.warnings == []
    if epoch == 0:
        assert_same_bits(load_weights(run), load_weights(half))
    for other in (whole, half):
        assert compute_largest_difference(load_weights(run), load_weights(other)) <= 1e-6
    start = create_small_training(animals, model__weights=str(pretrained)).module.state_dict()
    assert compute_largest_difference(load_weights(run), start) > 1e-2, (
        "else equality to 1e-6 would be trivial"
    )
    assert [row["epoch"] for row in read_rows(run)] == ["1", "2", "3"]
    assert [row["step"] for row in read_rows(run)] == ["3", "6", "9"]
    assert read_stored_config(run) == read_stored_config(half).model_copy(
        update={"output": str(run)}
    )


def test_out_of_memory_with_one_image_raises_and_run_can_be_resumed(
    animals: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    recorder = RecordingReporter()
    with monkeypatch.context() as patch:
        limit_memory(patch, epoch=1, num_images=0)
        with pytest.raises(OutOfMemoryError) as caught:
            finetune.fit(build_run_config(animals, run, pretrained), reporter=recorder)
    notes = [note for note in recorder.notes if "Out of memory" in note]
    assert [re.findall(r"(\d+) micro-batches", note) for note in notes] == [["2"], ["4"], ["8"]]
    assert read_stored_config(run).trainer.accumulate_grad_batches == 8
    assert caught.value.exit_code == 9
    message = str(caught.value)
    assert "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB." in message
    for name in ("1 image", "--image-size", "--backbone", "model.grad_checkpointing=true"):
        assert name in message
    assert [row["epoch"] for row in read_rows(run)] == ["1"]
    finetune.resume(run, assignments={"trainer.accumulate_grad_batches": 1})
    whole = finetune.fit(build_run_config(animals, tmp_path / "whole", pretrained)).run_dir
    assert_same_bits(load_weights(run), load_weights(whole))


def test_out_of_memory_in_resumed_run_halves_micro_batch(
    animals: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetune.fit(build_run_config(animals, tmp_path / "run", pretrained)).run_dir
    limit_memory(monkeypatch, epoch=3, num_images=4)
    recorder = RecordingReporter()
    finetune.resume(run, assignments={"trainer.epochs": 5}, reporter=recorder)
    assert len([note for note in recorder.notes if "Out of memory" in note]) == 1
    assert read_stored_config(run).trainer.accumulate_grad_batches == 2
    assert [row["epoch"] for row in read_rows(run)] == ["1", "2", "3", "4", "5"]


def test_out_of_memory_continues_the_wandb_run(
    animals: Path,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    limit_memory(monkeypatch, epoch=1, num_images=4)
    config = build_run_config(animals, tmp_path / "run", pretrained, tracking__wandb="offline")
    run = finetune.fit(config).run_dir
    files = read_offline_runs(run)
    assert {file.run_id for file in files} == {(run / "wandb_id.txt").read_text().strip()}
    epochs = [int(row["epoch"]) for file in files for row in file.history if "val/loss" in row]
    assert epochs == [0, 1, 2]
    assert files[-1].config["trainer.accumulate_grad_batches"] == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"trainer__batch_size": 8}, 2),
        ({"trainer__batch_size": 8, "trainer__accumulate_grad_batches": 2}, 4),
        ({"trainer__batch_size": 9}, 3),
        (
            {
                "trainer__batch_size": 14,
                "trainer__accumulate_grad_batches": 2,
                "model__batch_norm": "frozen",
            },
            14,
        ),
        (
            {
                "trainer__batch_size": 8,
                "trainer__accumulate_grad_batches": 2,
                "augment__mixup": 0.2,
            },
            4,
        ),
        ({"trainer__batch_size": 9, "augment__mixup": 0.2}, 3),
    ],
)
def test_reduce_micro_batch_uses_the_next_divisor(
    settings: dict[str, Any], expected: int, animals: Path
) -> None:
    training = create_small_training(animals, **settings)
    config = reduce_micro_batch(training, OutOfMemoryError("Full."))
    assert config.trainer.accumulate_grad_batches == expected
    before = training.config.model_dump()
    before["trainer"]["accumulate_grad_batches"] = expected
    assert config.model_dump() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trainer__devices": 2},
            "finetune fit --resume 'my runs/a' trainer.accumulate_grad_batches=2",
        ),
        (
            {"trainer__devices": 2, "trainer__num_nodes": 2, "model__batch_norm": "frozen"},
            "finetune fit --resume 'my runs/a' trainer.accumulate_grad_batches=2",
        ),
        (
            {
                "trainer__devices": 2,
                "trainer__accumulate_grad_batches": 4,
                "model__batch_norm": "frozen",
            },
            "1 image does not fit",
        ),
        (
            {"trainer__accumulate_grad_batches": 4, "augment__mixup": 0.2},
            "2 images do not fit",
        ),
    ],
    ids=["processes", "nodes", "one image", "a pair"],
)
def test_reduce_micro_batch_not_possible_raises_out_of_memory_error(
    settings: dict[str, Any], message: str, animals: Path
) -> None:
    training = create_small_training(animals, output="my runs/a", **settings)
    assert get_micro_batch_size(training) in (1, 2, 4)
    with pytest.raises(OutOfMemoryError) as caught:
        reduce_micro_batch(training, OutOfMemoryError("Full."))
    assert str(caught.value).startswith("Full. ")
    assert message in str(caught.value)


# a custom learning rate schedule, and a loss that runs out of memory after an epoch
CUSTOM_CODE = """
import os, torch

is_limited = False

def schedule(progress):
    global is_limited
    is_limited = is_limited or progress >= 1 / 3
    return 1 - progress

def loss(logits, target):
    ranks, limit = os.environ.get("MEMORY_LIMIT", " 99").split(" ")
    if is_limited and os.environ.get("LOCAL_RANK", "0") in ranks and len(logits) > int(limit):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return torch.nn.functional.cross_entropy(logits, target)
"""


def build_command(config: Config, *more: object) -> list[str]:
    """Return the command line of a config."""
    tree = config.model_dump(exclude_unset=True)
    keys = [
        f"{s}.{k}={v}"
        for s, section in tree.items()
        if isinstance(section, dict)
        for k, v in section.items()
    ]
    return ["fit", *keys, "--output", str(config.output), *map(str, more)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "01"])
def test_out_of_memory_of_either_process_ends_both_and_names_the_command(
    ranks: str, animals: Path, pretrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(CUSTOM_CODE)
    custom = {"lr_schedule__name": "own:schedule", "loss__name": "own:loss"}
    settings = {**custom, "loss__label_smoothing": 0, "trainer__devices": 2}
    config = build_run_config(animals, tmp_path / "run", pretrained, **settings)
    process = run_in_process(tmp_path, *build_command(config), extra={"MEMORY_LIMIT": f"{ranks} 2"})
    assert process.returncode == (7 if ranks == "1" else 9), process.stderr
    message = " ".join(process.stderr.split())
    command = f"fit --resume {tmp_path / 'run'} trainer.accumulate_grad_batches=2"
    assert f"finetune {command}" in message
    assert "Traceback" not in message
    again = run_in_process(tmp_path, *command.split(), extra={"MEMORY_LIMIT": f"{ranks} 2"})
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    builtin = {"lr_schedule__name": "linear", "lr_schedule__final_factor": 0.0}
    settings = {**builtin, "loss__label_smoothing": 0}
    whole = finetune.fit(
        build_run_config(animals, tmp_path / "whole", pretrained, **settings)
    ).run_dir
    assert compute_largest_difference(load_weights(tmp_path / "run"), load_weights(whole)) <= 1e-6
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == ["1", "2", "3"]


# limits the address space at the start of the second epoch
LIMIT_CODE = """
import os, resource

is_limited = False

def schedule(progress):
    global is_limited
    if progress >= 1 / 3 and not is_limited and "MEMORY_LIMIT" in os.environ:
        is_limited = True
        with open("/proc/self/statm") as stream:
            used = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(os.environ["MEMORY_LIMIT"]),) * 2)
    return 1 - progress
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_out_of_memory_of_the_cpu_halves_micro_batch(pretrained: Path, tmp_path: Path) -> None:
    # 96 images of 128 px keep about 368 MB for the backward pass, and half of them half as much
    data = write_photos(tmp_path / "photos", num_train=32)
    (tmp_path / "own.py").write_text(LIMIT_CODE)
    settings: dict[str, Any] = {
        "data__image_size": 128,
        "trainer__batch_size": 96,
        "lr_schedule__name": "own:schedule",
    }
    # freed memory is returned to the system at once, so that the limit is exact
    extra = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    for name, limit in (("run", {"MEMORY_LIMIT": "270000000"}), ("whole", {})):
        config = build_run_config(data, tmp_path / name, pretrained, **settings)
        process = run_in_process(tmp_path, *build_command(config), extra={**extra, **limit})
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        output = " ".join(process.stdout.split())
        assert output.count("2 micro-batches") == (name == "run")
        assert output.count("Out of memory") == (name == "run")
    assert read_stored_config(tmp_path / "run").trainer.accumulate_grad_batches == 2
    assert (
        compute_largest_difference(load_weights(tmp_path / "run"), load_weights(tmp_path / "whole"))
        <= 1e-6
    )


@pytest.mark.parametrize("step", ["write_bundle", "write_diagnosis", "finish_tracking"])
def test_stop_after_the_last_epoch_names_the_command_that_resumes(
    step: str, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **named: Any) -> None:
        raise StopRequest(signal.SIGTERM)

    run, reporter = tmp_path / "run", RecordingReporter()
    config = create_small_config(
        data__path=str(animals),
        model__weights="random",
        probe__enabled="off",
        trainer__epochs=1,
        output=str(run),
    )
    with monkeypatch.context() as patch:
        patch.setattr(f"finetune.commands.fit.train.{step}", stop)
        with pytest.raises(StopRequest):
            finetune.fit(config, reporter=reporter)
    assert [note for note in reporter.notes if note.startswith("Stopped.")] == [
        f"Stopped. Resume with: finetune fit --resume {run}"
    ]
    assert finetune.resume(run).metrics["val"]
