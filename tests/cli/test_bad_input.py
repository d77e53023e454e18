"""Bad input on the command line: one message with the remedy, an exit code, nothing written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

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
from tests.support.helpers import ROOT, list_tree, mount_tiny_disk, write_images

Prepare = Callable[[Path], object]


@pytest.fixture
def workdir(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder that contains ``photos``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_file(name: str, text: str = "") -> Prepare:
    def prepare(workdir: Path) -> None:
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(text)

    return prepare


def make_empty_folder(workdir: Path) -> None:
    (workdir / "empty").mkdir()


def make_one_class(workdir: Path) -> None:
    write_images(workdir / "pets", "cat/0.png", "cat/1.png")


def make_empty_class(workdir: Path) -> None:
    (workdir / "photos" / "emu").mkdir()


def make_unreadable_class(workdir: Path) -> None:
    (workdir / "photos" / "emu").mkdir()
    for number in range(5):
        (workdir / "photos" / "emu" / f"{number}.png").write_bytes(b"no image")


def make_unknown_val_class(workdir: Path) -> None:
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    write_images(workdir / "pets", *names, "val/cat/9.png", "val/dgo/9.png")


def make_tiny_class(workdir: Path) -> None:
    write_images(workdir / "photos", "emu/0.png")


THREE_MISTAKES = """
trainer: {epochs: many}
optim: {lrr: 0.1}
modle: {backbone: resnet18}
"""

FIT = ("fit", "photos", *SMALL)
LONG = "x" * 300
"""Argument that can be no name of a file: these have up to 255 bytes."""


@pytest.mark.parametrize(
    ("prepare", "args", "error", "parts"),
    [
        pytest.param(
            None, ("fit", "photo"), DataError, ["photo", "'photos'?"], id="missing folder"
        ),
        pytest.param(
            make_empty_folder, ("fit", "empty", *SMALL), DataError, ["empty"], id="empty folder"
        ),
        pytest.param(
            make_one_class, ("fit", "pets", *SMALL), DataError, ["'cat'", "two"], id="one class"
        ),
        pytest.param(write_file("a.png"), ("fit", "a.png"), DataError, ["a.png"], id="image file"),
        pytest.param(make_empty_class, FIT, DataError, ["emu"], id="empty class folder"),
        pytest.param(
            make_unknown_val_class, ("fit", "pets", *SMALL), DataError,
            ["'dgo'", "val", "'dog'?", "train"],
            id="unknown class in val",
        ),
        pytest.param(
            make_unreadable_class, FIT, DataError, ["'emu'", ".png"],
            id="class of unreadable images",
        ),
        pytest.param(
            make_tiny_class, FIT, DataError, ["'emu' (1)", "data.min_images_per_class"],
            id="class too small to split",
        ),
        pytest.param(
            None, ("fit", "photos", "--eopchs", "3"), ConfigError,
            ["--eopchs", "finetune fit --help"],
            id="unknown option",
        ),
        pytest.param(
            None, ("train", "photos"), ConfigError, ["train", "--help"], id="unknown command"
        ),
        pytest.param(
            None, ("export", "photos"), ConfigError, ["--output FOLDER", "photos"],
            id="missing option",
        ),
        pytest.param(
            None, ("predict", "photos", "photos", "--top-k", "0"), ConfigError, ["--top-k", "1"],
            id="value out of range",
        ),
        pytest.param(
            write_file("three.yaml", THREE_MISTAKES),
            ("fit", "photos", "--config", "three.yaml", "--seed", "-1"), ConfigError,
            ["4 ", "trainer.epochs", "'many'", "optim.lrr", "'optim.lr'?", "modle", "seed", "'-1'",
             "(--seed)", "(three.yaml)", "finetune config"],
            id="config file with three mistakes",
        ),
        pytest.param(
            None, ("fit", "photos", "--config", "gone.yaml"), ConfigError, ["gone.yaml"],
            id="missing config",
        ),
        pytest.param(
            None, ("fit", "photos", *SMALL, "--unfreeze", "gradul"), ConfigError,
            ["unfreeze.name", "'gradual'?"],
            id="unknown schedule",
        ),
        pytest.param(
            None, ("fit", "photos", "--backbone", "resnet5O", "--weights", "random"), ModelError,
            ["'resnet5O'", "'resnet50"],
            id="unknown backbone",
        ),
        pytest.param(
            None, ("fit", "photos", "--backbone", "test_resnet", "--weights", "gone.pth"),
            ModelError, ["gone.pth", "'hub'", "'random'"],
            id="missing weights",
        ),
        pytest.param(
            write_file("bad.pth", "no weights"),
            ("fit", "photos", "--backbone", "test_resnet", "--weights", "bad.pth"),
            ModelError, ["bad.pth"],
            id="damaged weights",
        ),
        pytest.param(
            write_file("taken/config.yaml"), (*FIT, "--output", "taken"), RunFolderError,
            ["taken", "finetune fit --resume taken", "--output"],
            id="existing run folder",
        ),
        pytest.param(
            write_file("file"), (*FIT, "--output", "file/run"), StorageError, ["file", "--output"],
            id="output below a file",
        ),
        pytest.param(
            None, ("fit", "--resume", "photos"), RunFolderError, ["photos"],
            id="resume of a data folder",
        ),
        pytest.param(
            None, ("fit", "--resume", "runs/latest"), RunFolderError,
            ["runs/latest", "finetune fit"],
            id="resume without any run",
        ),
        pytest.param(
            None, ("evaluate", "photos", "photos"), RunFolderError, ["photos"],
            id="evaluate a data folder",
        ),
        pytest.param(
            None, ("predict", "photos", "photos", "--output", "a.csv"), RunFolderError, ["photos"],
            id="predict with a data folder",
        ),
        pytest.param(
            None, ("predict", "gone", "photos"), RunFolderError, ["gone", ".ckpt"],
            id="predict with a missing model",
        ),
        pytest.param(
            None, ("export", "photos", "--output", "model"), RunFolderError, ["photos"],
            id="export a data folder",
        ),
        pytest.param(
            None, ("evaluate", "photos", "--device", "tpu"), ConfigError,
            ["--device tpu", "auto, cpu, cuda, mps"],
            id="unknown device",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True], ids=["person", "json"])
def test_bad_input_is_one_message_and_writes_nothing(
    cli: Cli,
    workdir: Path,
    prepare: Prepare | None,
    args: tuple[str, ...],
    error: type[FinetuneError],
    parts: list[str],
    as_json: bool,
) -> None:
    if prepare is not None:
        prepare(workdir)
    before = list_tree(workdir)
    message = cli.fails(*args, *(["--json"] if as_json else []), code=error.exit_code)
    for part in parts:
        assert part in message
    assert list_tree(workdir) == before


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("fit", LONG), DataError),
        (("inspect", f"{LONG}.csv"), DataError),
        (("compare", f"{LONG}.parquet"), DataError),
        (("fit", "photos", "--weights", LONG), ModelError),
        (("fit", "--resume", LONG), RunFolderError),
        (("fit", "photos", "--augment", f"{LONG}.json"), ConfigError),
        (("predict", LONG, "photos"), RunFolderError),
        (("evaluate", LONG), RunFolderError),
        (("export", LONG), RunFolderError),
        (("report", LONG), RunFolderError),
        (("tune", "--resume", LONG), RunFolderError),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_too_long_path_does_not_exist(
    cli: Cli, workdir: Path, args: tuple[str, ...], error: type[FinetuneError]
) -> None:
    message = cli.fails(*args, code=error.exit_code)
    assert "does not exist" in " ".join(message.split())


def test_too_long_argument_of_predict_is_no_bug(cli: Cli, workdir: Path) -> None:
    assert "photos" in cli.fails("predict", "photos", LONG, code=RunFolderError.exit_code)


def test_fit_read_only_output_fails_before_any_work(cli: Cli, workdir: Path) -> None:
    with mount_tiny_disk(workdir / "disk", size="64k") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)
        message = cli.fails(*FIT, "--output", "disk/runs/a", code=StorageError.exit_code)
        assert "disk" in message
        assert "--output" in message
        assert list_tree(disk) == []


def test_fit_full_disk_writes_nothing(cli: Cli, workdir: Path) -> None:
    with mount_tiny_disk(workdir / "disk", size="4k") as disk:
        message = cli.fails(*FIT, "--output", "disk/run", "--json", code=StorageError.exit_code)
        assert "no space is left" in message
        assert list_tree(disk) == []


def test_fit_disk_full_while_training_can_be_resumed(cli: Cli, workdir: Path) -> None:
    with mount_tiny_disk(workdir / "disk", size="256k") as disk:
        message = cli.fails(*FIT, "--output", "disk/run", "--json", code=StorageError.exit_code)
        assert "--resume" in message
        left = [name for name in list_tree(disk) if name != "run/.lock"]
        assert not [name for name in left if name.endswith(".ckpt") or Path(name).name[0] == "."]
        grown = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(grown, check=True, capture_output=True)
        assert cli.ok("fit", "--resume", "disk/run", "--json").json["metrics"]["val"]


def test_fit_out_of_memory_at_smallest_batch_writes_nothing(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from finetune.models.classifier import ImageClassifier

    def raise_out_of_memory(self: ImageClassifier, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(ImageClassifier, "forward", raise_out_of_memory)
    before = list_tree(workdir)
    message = cli.fails(*FIT, code=OutOfMemoryError.exit_code)
    assert "2.00 GiB" in message
    assert "--image-size" in message
    assert list_tree(workdir) == before


def test_unexpected_error_asks_for_report(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no function of this file, which would count as code of the user
    fail = mock.Mock(side_effect=ZeroDivisionError("ours"))
    monkeypatch.setattr("finetune.commands.fit.fit.fit", fail)
    message = cli.fails(*FIT, code=1)
    assert "ZeroDivisionError: ours" in message
    assert "FINETUNE_DEBUG=1" in message
    monkeypatch.setenv("FINETUNE_DEBUG", "1")
    assert "Traceback" in cli(*FIT).err


def test_ctrl_c_exits_with_130(cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.commands.fit.fit.fit", interrupt)
    assert "Ctrl-C" in cli.fails(*FIT, code=130)


def test_closed_output_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m finetune config | head -1"
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("#")
