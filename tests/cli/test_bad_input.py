"""What goes wrong at a user's hands: one message with the remedy, an exit code, nothing left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.errors import (
    ConfigError,
    DataError,
    FinetuneError,
    ModelError,
    OutOfMemoryError,
    RunFolderError,
    StorageError,
)
from tests.cli.conftest import SMALL, Cli
from tests.support.helpers import ROOT, everything, tiny_disk, write_images

Prepare = Callable[[Path], object]


@pytest.fixture
def here(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds ``photos``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str = "") -> Prepare:
    def prepare(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)

    return prepare


def empty(here: Path) -> None:
    (here / "empty").mkdir()


def one_class(here: Path) -> None:
    write_images(here / "pets", "cat/0.png", "cat/1.png")


def empty_class(here: Path) -> None:
    (here / "photos" / "emu").mkdir()


def broken_class(here: Path) -> None:
    (here / "photos" / "emu").mkdir()
    for number in range(5):
        (here / "photos" / "emu" / f"{number}.png").write_bytes(b"no image")


def strange_class(here: Path) -> None:
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    write_images(here / "pets", *names, "val/cat/9.png", "val/dgo/9.png")


def tiny_class(here: Path) -> None:
    write_images(here / "photos", "emu/0.png")


THREE_MISTAKES = """
trainer: {epochs: many}
optim: {lrr: 0.1}
modle: {backbone: resnet18}
"""

FIT = ("fit", "photos", *SMALL)


@pytest.mark.parametrize(
    ("prepare", "words", "error", "parts"),
    [
        pytest.param(
            None, ("fit", "photo"), DataError, ["photo does not exist", "mean 'photos'?"],
            id="missing folder",
        ),
        pytest.param(
            empty, ("fit", "empty"), DataError, ["empty holds no labelled image", "Expected"],
            id="empty folder",
        ),
        pytest.param(
            one_class, ("fit", "pets", *SMALL), DataError,
            ["holds one class, 'cat'", "at least two"],
            id="one class",
        ),
        pytest.param(
            write("a.png"), ("fit", "a.png"), DataError, ["a.png is a file", "is needed"],
            id="file for a folder",
        ),
        pytest.param(
            empty_class, FIT, DataError, ["emu holds no image", "Add images or remove"],
            id="empty class folder",
        ),
        pytest.param(
            strange_class, ("fit", "pets", *SMALL), DataError,
            ["Class 'dgo' is in the val split", "mean 'dog'?", "Add it to train, or remove it"],
            id="unknown class in val",
        ),
        pytest.param(
            broken_class, FIT, DataError, ["No image of class 'emu' can be read", "Mend"],
            id="class of unreadable images",
        ),
        pytest.param(
            tiny_class, FIT, DataError, ["too small to split: 'emu' (1)", "min_images_per_class"],
            id="class too small to split",
        ),
        pytest.param(
            None, ("fit", "photos", "--eopchs", "3"), ConfigError,
            ["--eopchs", "See: finetune fit --help"],
            id="unknown option",
        ),
        pytest.param(
            None, ("train", "photos"), ConfigError, ["train", "--help"], id="unknown verb"
        ),
        pytest.param(
            None, ("export", "photos"), ConfigError, ["--output", "See: finetune export --help"],
            id="missing option",
        ),
        pytest.param(
            None, ("predict", "photos", "photos", "--top-k", "0"), ConfigError, ["--top-k", "1"],
            id="value out of range",
        ),
        pytest.param(
            write("three.yaml", THREE_MISTAKES),
            ("fit", "photos", "--config", "three.yaml", "--seed", "-1"), ConfigError,
            ["4 mistakes", "trainer.epochs: found 'many'", "optim.lrr: unknown key. Did you mean "
             "'optim.lr'?", "modle: unknown key", "seed: found '-1'", "(--seed)", "(three.yaml)",
             "finetune config"],
            id="config of three mistakes",
        ),
        pytest.param(
            None, ("fit", "photos", "--config", "gone.yaml"), ConfigError,
            ["Cannot read the config file gone.yaml", "Check the path"],
            id="missing config",
        ),
        pytest.param(
            None, ("fit", "photos", *SMALL, "--unfreeze", "gradul"), ConfigError,
            ["unfreeze.name", "mean 'gradual'?"],
            id="unknown schedule",
        ),
        pytest.param(
            None, ("fit", "photos", "--backbone", "resnet5O", "--weights", "random"), ModelError,
            ["Unknown backbone 'resnet5O'", "Did you mean 'resnet50"],
            id="unknown backbone",
        ),
        pytest.param(
            None, ("fit", "photos", "--backbone", "test_resnet", "--weights", "gone.pth"),
            ModelError, ["weights gone.pth do not exist", "'hub' or 'random'"],
            id="missing weights",
        ),
        pytest.param(
            write("bad.pth", "no weights"),
            ("fit", "photos", "--backbone", "test_resnet", "--weights", "bad.pth"),
            ModelError, ["bad.pth", "Give a"],
            id="damaged weights",
        ),
        pytest.param(
            write("taken/config.yaml"), (*FIT, "--output", "taken"), RunFolderError,
            ["taken exists and is not empty", "finetune fit --resume taken", "--output"],
            id="run folder that exists",
        ),
        pytest.param(
            write("file"), (*FIT, "--output", "file/run"), StorageError,
            ["file may not be written", "--output"],
            id="output below a file",
        ),
        pytest.param(
            None, ("fit", "--resume", "photos"), RunFolderError,
            ["photos is no run folder", "Name"],
            id="resume of no run",
        ),
        pytest.param(
            None, ("fit", "--resume", "runs/latest"), RunFolderError,
            ["points at no run yet", "finetune fit FOLDER"],
            id="resume of the first run",
        ),
        pytest.param(
            None, ("evaluate", "photos", "photos"), RunFolderError, ["photos holds no model"],
            id="evaluate of no run",
        ),
        pytest.param(
            None, ("predict", "photos", "photos", "--output", "a.csv"), RunFolderError,
            ["photos holds no model"],
            id="predict of no run",
        ),
        pytest.param(
            None, ("predict", "gone", "photos"), RunFolderError,
            ["gone does not exist", "Name a run folder, a bundle folder or a .ckpt file"],
            id="predict of nothing",
        ),
        pytest.param(
            None, ("export", "photos", "--output", "model"), RunFolderError,
            ["photos holds no model"],
            id="export of no run",
        ),
        pytest.param(
            None, ("evaluate", "photos", "--device", "tpu"), ConfigError,
            ["--device tpu: there are auto, cpu, cuda, mps"],
            id="unknown device",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True], ids=["person", "json"])
def test_bad_input_is_one_message_and_leaves_nothing(
    cli: Cli,
    here: Path,
    prepare: Prepare | None,
    words: tuple[str, ...],
    error: type[FinetuneError],
    parts: list[str],
    as_json: bool,
) -> None:
    if prepare is not None:
        prepare(here)
    before = everything(here)
    message = cli.refused(*words, *(["--json"] if as_json else []), code=error.exit_code)
    for part in parts:
        assert part in message
    assert everything(here) == before


def test_an_output_on_a_read_only_disk_is_refused_before_any_work(cli: Cli, here: Path) -> None:
    with tiny_disk(here / "disk", size="64k") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)
        message = cli.refused(*FIT, "--output", "disk/runs/a", code=StorageError.exit_code)
        assert "disk may not be written. Choose another place with --output" in message
        assert everything(disk) == []


def test_a_disk_too_full_for_a_run_folder_is_left_as_it_was(cli: Cli, here: Path) -> None:
    with tiny_disk(here / "disk", size="4k") as disk:
        message = cli.refused(*FIT, "--output", "disk/run", "--json", code=StorageError.exit_code)
        assert "no space is left on the device. Make room there" in message
        assert everything(disk) == []


def test_a_disk_that_fills_up_in_training_leaves_a_run_that_goes_on(cli: Cli, here: Path) -> None:
    with tiny_disk(here / "disk", size="256k") as disk:
        message = cli.refused(*FIT, "--output", "disk/run", "--json", code=StorageError.exit_code)
        assert "--resume" in message
        left = [name for name in everything(disk) if name != "run/.lock"]
        assert not [name for name in left if name.endswith(".ckpt") or Path(name).name[0] == "."]
        grown = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(grown, check=True, capture_output=True)
        assert cli.ok("fit", "--resume", "disk/run", "--json").json["metrics"]["val"]


def test_what_can_never_fit_is_refused_before_anything_is_written(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from finetune.models.classifier import ImageClassifier

    def full(self: ImageClassifier, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(ImageClassifier, "forward", full)
    before = everything(here)
    message = cli.refused(*FIT, code=OutOfMemoryError.exit_code)
    assert "2.00 GiB. Not even a few images fit. Take a smaller --image-size" in message
    assert everything(here) == before


def test_a_defect_of_ours_asks_for_a_report(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("finetune.commands.fit.fit.fit", broken)
    message = cli.refused(*FIT, code=1)
    assert "unexpected ZeroDivisionError: ours" in message
    assert "report it with the output of FINETUNE_DEBUG=1" in message
    monkeypatch.setenv("FINETUNE_DEBUG", "1")
    assert "Traceback" in cli(*FIT).err


def test_ctrl_c_has_an_exit_code_of_its_own(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.commands.fit.fit.fit", stopped)
    assert "stopped by Ctrl-C" in cli.refused(*FIT, code=130)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m finetune config | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# Every key")
