"""The verb ``submit``: which words are its own and which are fit's, and what it prints."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.helpers import run_python


@pytest.fixture(autouse=True)
def _here(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)


def words_of(text: str) -> str:
    """Return the words of ``fit`` in a script."""
    (line,) = [line for line in text.splitlines() if line.startswith("set -- ")]
    return line.removeprefix("set -- ")


def test_own_options_go_to_the_job_and_all_others_to_fit(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("optim: {lr: 0.5}\n")
    said = cli.ok(
        "submit", "--backbone", "vgg16", "photos", "--nodes", 2, "optim.name=sgd",
        "--time=1:00:00", "--config", "some.yaml", "--gpus-per-node", 4, "--sbatch", "--mem=8G",
        "--sbatch=--exclusive", "unfreeze.params={start: 2}", "--epochs=3", "--output", "runs/a",
        "--dry-run",
    )  # fmt: skip
    assert words_of(said.out) == (
        "photos optim.name=sgd 'unfreeze.params={start: 2}' --config some.yaml "
        "--backbone vgg16 --epochs 3"
    )
    lines = said.out.splitlines()
    assert f"run={tmp_path}/runs/a" in lines
    for option in ("nodes=2", "gpus-per-node=4", "time=1:00:00", "mem=8G", "exclusive"):
        assert f"#SBATCH --{option}" in lines
    assert said.err == ""


@pytest.mark.parametrize(
    "words", [("data.path=photos",), ("output=runs/a",), ("--resume", "auto"), ("resume=auto",)]
)
def test_what_the_script_gives_by_itself_is_not_given_twice(
    cli: Cli, words: tuple[str, ...]
) -> None:
    data = () if "data.path=photos" in words else ("photos",)
    said = cli.ok("submit", *data, *words, "--dry-run")
    assert words_of(said.out) == "photos"


def test_a_run_without_a_name_gets_one(cli: Cli) -> None:
    tree = cli.ok("submit", "photos", "--backbone", "vgg16", "--dry-run", "--json").json
    assert tree["job_id"] is None
    assert Path(tree["run_dir"]).parent == Path.cwd() / "runs"
    assert tree["run_dir"].endswith("-vgg16-photos")
    assert f"run={tree['run_dir']}\n" in tree["text"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "No images: name a folder or a CSV"),
        (("fotos",), 3, "fotos does not exist. Did you mean 'photos'?"),
        (("photos", "photos"), 2, "Two data paths, photos and photos; keep one"),
        (("photos", "optim.lrr=1"), 2, "optim.lrr: unknown key. Did you mean 'optim.lr'?"),
        (("photos", "--epochs", "0"), 2, "trainer.epochs"),
        (("photos", "--epochs", "3", "trainer.epochs=4"), 2, "differ; keep one"),
        (("photos", "--config", "no.yaml"), 2, "Cannot read the config file no.yaml"),
        (("photos", "--node", "2"), 2, "There is no option --node, neither of submit nor of fit. "
         "Did you mean '--nodes'? See: finetune submit --help"),
        (("photos", "--epoch=2"), 2, "There is no option --epoch, neither"),
        (("photos", "--epochs"), 2, "requires an argument"),
        (("photos", "--nodes", "two"), 2, "--nodes"),
        (("photos", "--resume", "runs/a"), 2, "finetune submit DATA --output runs/a"),
        (("photos", "--nodes", "2", "--num-nodes", "3"), 2, "trainer.num_nodes is 3"),
        (("photos", "--time", "4h"), 2, "--time 4h: give minutes"),
    ],
)  # fmt: skip
def test_a_mistake_is_found_before_anything_is_submitted(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert message in cli.refused("submit", *words, code=code)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_submitted_job_is_named_with_what_can_be_done(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 17\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=os.pathsep)
    said = cli.ok("submit", "photos", "--output", "runs/a")
    assert said.out.split()[:4] == ["job", "17", "run", f"{tmp_path}/runs/a"]
    assert f"tail -F {tmp_path}/runs/a.log" in said.out
    assert "scancel --signal=USR1 17" in said.out
    assert "finetune fetch resnet50" in said.out
    said = cli.ok("submit", "photos", "--output", "runs/b", "--weights", "random", "--json")
    assert said.json["job_id"] == "17"
    assert (tmp_path / "runs" / "b.sbatch").read_text() == said.json["text"]
    assert "finetune fetch" not in said.err


TORCH_FREE = """
import json, sys
from finetune.cli.main import run
code = run(["submit", sys.argv[1], "--dry-run"])
heavy = {"torch", "timm", "pytorch_lightning", "albumentations", "torchvision", "wandb", "numpy"}
print()
print(json.dumps([code, sorted(heavy & sys.modules.keys())]))
"""


def test_a_submission_needs_no_torch(photos: Path) -> None:
    last = run_python(TORCH_FREE, photos).splitlines()[-1]
    assert json.loads(last) == [0, []]
