"""Progress bars of epochs."""

from pathlib import Path

import pytest

from finetune.data.images.source import FileSource
from finetune.training.callbacks.progress import Progress
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from tests.support.runs import create_small_training
from tests.training.callbacks.reporting import CallRecorder, train_with_callbacks


def test_progress_each_epoch_advances_by_its_total(animals: Path, tmp_path: Path) -> None:
    recorder = CallRecorder()
    train_with_callbacks(
        create_small_training(animals), tmp_path, UnfreezeScheduler(), Progress(recorder)
    )
    starts = [index for index, (kind, _) in enumerate(recorder.calls) if kind == "start"]
    assert [recorder.calls[index][1][0] for index in starts] == ["epoch 1/2", "epoch 2/2"]
    for first, last in zip(starts, [*starts[1:], len(recorder.calls)], strict=True):
        advanced = sum(value for kind, value in recorder.calls[first:last] if kind == "advance")
        # 24, 15 and 15 images in batches of 8
        assert advanced == recorder.calls[first][1][1] == 3 + 2 + 2
    assert recorder.calls[-1] == ("finish", None)


def test_progress_exception_finishes_the_bar(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(animals)
    training.datamodule.train_dataset.source = FileSource(
        [tmp_path / "gone.png"] * len(training.datamodule.train_dataset)
    )
    recorder = CallRecorder()
    with pytest.raises(ValueError, match=r"gone\.png"):
        train_with_callbacks(training, tmp_path, UnfreezeScheduler(), Progress(recorder))
    assert recorder.calls[-1] == ("finish", None)
