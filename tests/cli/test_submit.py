"""Tests of the ``submit`` command: its own options, the arguments of fit, and its output."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.helpers import run_python


@pytest.fixture(autouse=True)
def _here(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)


def get_fit_arguments(text: str) -> str:
    """Return the arguments of ``fit`` in a batch script."""
    (line,) = [line for line in text.splitlines() if line.startswith("set -- ")]
    return line.removeprefix("set -- ")


def test_submit_separates_job_options_from_fit_arguments(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("optim: {lr: 0.5}\n")
    output = cli.ok(
        "submit", "--backbone", "vgg16", "photos", "--nodes", 2, "optim.name=sgd",
        "--time=1:00:00", "--config", "some.yaml", "--gpus-per-node", 4, "--sbatch", "--mem=8G",
        "--sbatch=--exclusive", "unfreeze.params={start: 2}", "--epochs=3", "--output", "runs/a",
        "--dry-run",
    )  # fmt: skip
    assert get_fit_arguments(output.out) == (
        "photos optim.name=sgd 'unfreeze.params={start: 2}' --config some.yaml "
        "--backbone vgg16 --epochs 3"
    )
    lines = output.out.splitlines()
    assert f"run={tmp_path}/runs/a" in lines
    for option in ("nodes=2", "gpus-per-node=4", "time=1:00:00", "mem=8G", "exclusive"):
        assert f"#SBATCH --{option}" in lines
    assert output.err == ""


@pytest.mark.parametrize(
    "args", [("data.path=photos",), ("output=runs/a",), ("--resume", "auto"), ("resume=auto",)]
)
def test_submit_omits_arguments_that_the_script_sets(cli: Cli, args: tuple[str, ...]) -> None:
    data = () if "data.path=photos" in args else ("photos",)
    output = cli.ok("submit", *data, *args, "--dry-run")
    assert get_fit_arguments(output.out) == "photos"


def test_submit_without_output_builds_run_name(cli: Cli) -> None:
    tree = cli.ok("submit", "photos", "--backbone", "vgg16", "--dry-run", "--json").json
    assert tree["job_id"] is None
    assert Path(tree["run_dir"]).parent == Path.cwd() / "runs"
    assert tree["run_dir"].endswith("-vgg16-photos")
    assert f"run={tree['run_dir']}\n" in tree["script_text"]


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        ((), 2, ["finetune fit photos/"]),
        (("fotos",), 3, ["fotos", "'photos'?"]),
        (("photos", "photos"), 2, ["photos and photos"]),
        (("photos", "optim.lrr=1"), 2, ["optim.lrr", "'optim.lr'?"]),
        (("photos", "--epochs", "0"), 2, ["trainer.epochs"]),
        (("photos", "--epochs", "3", "trainer.epochs=4"), 2, ["--epochs 3", "trainer.epochs=4"]),
        (("photos", "--config", "no.yaml"), 2, ["no.yaml"]),
        (("photos", "--node", "2"), 2, ["--node.", "'--nodes'?", "finetune submit --help"]),
        (("photos", "--epoch=2"), 2, ["--epoch.", "'--epochs'?"]),
        (("photos", "--epochs"), 2, ["--epochs"]),
        (("photos", "--nodes", "two"), 2, ["--nodes"]),
        (("photos", "--resume", "runs/a"), 2, ["finetune submit DATA --output runs/a"]),
        (("photos", "--nodes", "2", "--num-nodes", "3"), 2, ["trainer.num_nodes=3", "2 nodes"]),
        (("photos", "--time", "4h"), 2, ["--time 4h", "4:00:00"]),
    ],
)  # fmt: skip
def test_submit_invalid_arguments_fail_and_write_nothing(
    cli: Cli, tmp_path: Path, args: tuple[str, ...], code: int, parts: list[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    message = cli.fails("submit", *args, code=code)
    assert [part for part in parts if part not in message] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_submit_reports_job_and_next_commands(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 17\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=os.pathsep)
    output = cli.ok("submit", "photos", "--output", "runs/a")
    assert output.words.startswith(f"job 17 run folder {tmp_path}/runs/a")
    assert f"tail -F {tmp_path}/runs/a.log" in output.out
    assert "scancel --signal=USR1 17" in output.out
    assert "finetune fetch resnet50" in output.out
    output = cli.ok("submit", "photos", "--output", "runs/b", "--weights", "random", "--json")
    assert output.json["job_id"] == "17"
    assert (tmp_path / "runs" / "b.sbatch").read_text() == output.json["script_text"]
    assert "finetune fetch" not in output.err
    output = cli.ok("submit", "photos", "--output", "runs/c", "--folds", "3")
    assert f"tail -F {tmp_path}/runs/c.fold-1.log {tmp_path}/runs/c.log" in output.out
    assert "scancel 17 17\n" in output.out


TORCH_FREE = """
import json, sys
from finetune.cli.main import run
code = run(["submit", sys.argv[1], "--dry-run"])
heavy = {"torch", "timm", "pytorch_lightning", "albumentations", "torchvision", "wandb", "numpy"}
print()
print(json.dumps([code, sorted(heavy & sys.modules.keys())]))
"""


def test_submit_imports_no_torch(photos: Path) -> None:
    last = run_python(TORCH_FREE, photos).splitlines()[-1]
    assert json.loads(last) == [0, []]
