"""Out of memory: the batch is halved, and the run ends as if it had been so from the start."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import finetune
from finetune.builders import get_micro_batch_size
from finetune.commands.fit.train import reduce_micro_batch
from finetune.config.load import build_config, read_config_file
from finetune.config.schema import Config
from finetune.errors import OutOfMemoryError
from finetune.models.classifier import ImageClassifier
from finetune.training.callbacks.progress import Progress
from tests.support.helpers import Recorder
from tests.support.runs import (
    assert_same_bits,
    largest_difference,
    rows,
    small_config,
    small_training,
    weights,
    write_photos,
    write_weights,
)
from tests.support.runs import finetune as in_a_process
from tests.support.wandb_file import read_offline_runs

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.\nSee documentation"


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def config_of(data: Path, output: Path, pretrained: Path, **more: Any) -> Config:
    """Return a run in which the order of additions alone depends on how a batch is split."""
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
    return small_config(**{**settings, **more})


def full_in(monkeypatch: pytest.MonkeyPatch, *, epoch: int, room: int) -> None:
    """Let a device have room for no more than some images, from an epoch on, counted from 0."""
    forward = ImageClassifier.forward
    started = Progress.on_train_epoch_start
    full = False

    def start(self: Progress, trainer: Any, pl_module: Any) -> None:
        nonlocal full
        full = full or trainer.current_epoch == epoch
        started(self, trainer, pl_module)

    def run_out(self: ImageClassifier, images: Tensor) -> Tensor:
        if full and self.training and len(images) > room:
            raise torch.OutOfMemoryError(SAID)
        return forward(self, images)

    monkeypatch.setattr(Progress, "on_train_epoch_start", start)
    monkeypatch.setattr(ImageClassifier, "forward", run_out)


def stored(run: Path) -> Config:
    return build_config(read_config_file(run / "config.yaml"))


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_goes_on_with_half_the_batch_to_the_same_end(
    epoch: int, animals: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune.fit(config_of(animals, tmp_path / "whole", pretrained)).run_dir
    half = finetune.fit(
        config_of(animals, tmp_path / "half", pretrained, trainer__accumulate_grad_batches=2)
    ).run_dir
    full_in(monkeypatch, epoch=epoch, room=4)
    recorder = Recorder()
    run = finetune.fit(config_of(animals, tmp_path / "run", pretrained), reporter=recorder).run_dir

    notes = [note for note in recorder.notes if "Out of memory" in note]
    assert notes == [
        "Out of memory: the batch of 8 now runs in 2 parts, whose gradients make one step; the "
        "epoch begins again."
    ]
    assert recorder.warnings == []
    if epoch == 0:
        assert_same_bits(weights(run), weights(half))
    for other in (whole, half):
        assert largest_difference(weights(run), weights(other)) <= 1e-6
    start = small_training(animals, model__weights=str(pretrained)).module.state_dict()
    assert largest_difference(weights(run), start) > 1e-2, "or equality to 1e-6 would say nothing"
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert [row["step"] for row in rows(run)] == ["3", "6", "9"]
    assert stored(run) == stored(half).model_copy(update={"output": str(run)})


def test_one_image_too_many_ends_the_run_which_goes_on_where_there_is_more(
    animals: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    recorder = Recorder()
    with monkeypatch.context() as patch:
        full_in(patch, epoch=1, room=0)
        with pytest.raises(OutOfMemoryError) as caught:
            finetune.fit(config_of(animals, run, pretrained), reporter=recorder)
    notes = [note for note in recorder.notes if "Out of memory" in note]
    assert [note.partition(" parts")[0].split()[-1] for note in notes] == ["2", "4", "8"]
    assert stored(run).trainer.accumulate_grad_batches == 8
    assert caught.value.exit_code == 9
    assert str(caught.value) == (
        "Out of memory: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB. One image "
        "at a time does not fit. Take a smaller --image-size or --backbone, or "
        "model.grad_checkpointing=true."
    )
    assert [row["epoch"] for row in rows(run)] == ["1"]
    finetune.resume(run, assignments={"trainer.accumulate_grad_batches": 1})
    whole = finetune.fit(config_of(animals, tmp_path / "whole", pretrained)).run_dir
    assert_same_bits(weights(run), weights(whole))


def test_a_resumed_run_may_run_out_of_memory_too(
    animals: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetune.fit(config_of(animals, tmp_path / "run", pretrained)).run_dir
    full_in(monkeypatch, epoch=3, room=4)
    recorder = Recorder()
    finetune.resume(run, assignments={"trainer.epochs": 5}, reporter=recorder)
    assert len([note for note in recorder.notes if "Out of memory" in note]) == 1
    assert stored(run).trainer.accumulate_grad_batches == 2
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3", "4", "5"]


def test_wandb_goes_on_with_its_run(
    animals: Path,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    full_in(monkeypatch, epoch=1, room=4)
    config = config_of(animals, tmp_path / "run", pretrained, tracking__wandb="offline")
    run = finetune.fit(config).run_dir
    parts = read_offline_runs(run)
    assert {part.run_id for part in parts} == {(run / "wandb_id.txt").read_text().strip()}
    epochs = [int(row["epoch"]) for part in parts for row in part.history if "val/loss" in row]
    assert epochs == [0, 1, 2]
    assert parts[-1].config["trainer"]["accumulate"] == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "parts"),
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
def test_the_fewest_parts_that_divide_the_batch_are_next(
    settings: dict[str, Any], parts: int, animals: Path
) -> None:
    training = small_training(animals, **settings)
    config = reduce_micro_batch(training, OutOfMemoryError("Full."))
    assert config.trainer.accumulate_grad_batches == parts
    before = training.config.model_dump()
    before["trainer"]["accumulate"] = parts
    assert config.model_dump() == before


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (
            {"trainer__devices": 2},
            "Full. Go on with a smaller batch in memory: "
            "finetune fit --resume runs/a trainer.accumulate_grad_batches=2",
        ),
        (
            {"trainer__devices": 2, "trainer__num_nodes": 2, "model__batch_norm": "frozen"},
            "Full. Go on with a smaller batch in memory: "
            "finetune fit --resume runs/a trainer.accumulate_grad_batches=2",
        ),
        (
            {
                "trainer__devices": 2,
                "trainer__accumulate_grad_batches": 4,
                "model__batch_norm": "frozen",
            },
            "Full. One image at a time does not fit. Take a smaller --image-size or --backbone, or "
            "model.grad_checkpointing=true.",
        ),
        (
            {"trainer__accumulate_grad_batches": 4, "augment__mixup": 0.2},
            "Full. 2 images at a time do not fit. Take a smaller --image-size or "
            "--backbone, or model.grad_checkpointing=true.",
        ),
    ],
    ids=["processes", "machines", "one image", "a pair"],
)
def test_what_cannot_be_halved_here_says_how_to_go_on(
    settings: dict[str, Any], remedy: str, animals: Path
) -> None:
    training = small_training(animals, output="runs/a", **settings)
    assert get_micro_batch_size(training) in (1, 2, 4)
    with pytest.raises(OutOfMemoryError) as caught:
        reduce_micro_batch(training, OutOfMemoryError("Full."))
    assert str(caught.value) == remedy


# a user's own learning rate, and a loss beside it for which there is no memory after an epoch
OWN_CODE = """
import os, torch

full = False

def schedule(progress):
    global full
    full = full or progress >= 1 / 3
    return 1 - progress

def loss(logits, target):
    ranks, room = os.environ.get("FULL", " 99").split(" ")
    if full and os.environ.get("LOCAL_RANK", "0") in ranks and len(logits) > int(room):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return torch.nn.functional.cross_entropy(logits, target)
"""


def words_of(config: Config, *more: object) -> list[str]:
    """Return the command line of a config."""
    tree = config.model_dump(exclude_unset=True)
    keys = [
        f"{s}.{k}={v}"
        for s, part in tree.items()
        if isinstance(part, dict)
        for k, v in part.items()
    ]
    return ["fit", *keys, "--output", str(config.output), *map(str, more)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "01"])
def test_of_two_processes_any_may_run_out_of_memory(
    ranks: str, animals: Path, pretrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN_CODE)
    own = {"lr_schedule__name": "own:schedule", "loss__name": "own:loss"}
    settings = {**own, "loss__label_smoothing": 0, "trainer__devices": 2}
    config = config_of(animals, tmp_path / "run", pretrained, **settings)
    ended = in_a_process(tmp_path, *words_of(config), extra={"FULL": f"{ranks} 2"})
    assert ended.returncode == (7 if ranks == "1" else 9), ended.stderr
    message = " ".join(ended.stderr.split())
    remedy = f"fit --resume {tmp_path / 'run'} trainer.accumulate_grad_batches=2"
    assert f"in memory: finetune {remedy}" in message
    assert "Traceback" not in message
    again = in_a_process(tmp_path, *remedy.split(), extra={"FULL": f"{ranks} 2"})
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    alone = {"lr_schedule__name": "linear", "lr_schedule__final_factor": 0.0}
    settings = {**alone, "loss__label_smoothing": 0}
    whole = finetune.fit(config_of(animals, tmp_path / "whole", pretrained, **settings)).run_dir
    assert largest_difference(weights(tmp_path / "run"), weights(whole)) <= 1e-6
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2", "3"]


# takes the room for more than so many bytes at the start of the second epoch
TIGHTEN = """
import os, resource

tight = False

def schedule(progress):
    global tight
    if progress >= 1 / 3 and not tight and "ROOM" in os.environ:
        tight = True
        with open("/proc/self/statm") as stream:
            used = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(os.environ["ROOM"]),) * 2)
    return 1 - progress
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory by Linux's means")
def test_a_process_that_really_runs_out_of_memory_goes_on(pretrained: Path, tmp_path: Path) -> None:
    # 48 images of 128 px keep about 184 MB for the backward pass, and half of them half of it
    data = write_photos(tmp_path / "photos", num_train=16)
    (tmp_path / "own.py").write_text(TIGHTEN)
    settings: dict[str, Any] = {
        "data__image_size": 128,
        "trainer__batch_size": 48,
        "lr_schedule__name": "own:schedule",
    }
    # freed memory goes back to the system at once, so that the limit means what it says
    extra = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    for name, room in (("run", {"ROOM": "135000000"}), ("whole", {})):
        config = config_of(data, tmp_path / name, pretrained, **settings)
        ended = in_a_process(tmp_path, *words_of(config), extra={**extra, **room})
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == ""
        said = " ".join(ended.stdout.split())
        assert said.count("the batch of 48 now runs in 2 parts") == (name == "run")
        assert said.count("Out of memory") == (name == "run")
    assert stored(tmp_path / "run").trainer.accumulate_grad_batches == 2
    assert largest_difference(weights(tmp_path / "run"), weights(tmp_path / "whole")) <= 1e-6
