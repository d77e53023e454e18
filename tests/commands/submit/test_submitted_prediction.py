"""Tests of ``finetune submit --verb predict``: its script, and mistakes that it finds."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.bundle.bundle import load_model, save_bundle
from finetune.commands.predict.predict_options import PredictOptions
from finetune.commands.predict.shards.sharded_prediction import predict_shards
from finetune.commands.predict.shards.work_share import NUM_TASKS_VARIABLE
from finetune.commands.submit.batch_script import JobResources, render_prediction_script
from finetune.types import Reporter
from tests.cli.conftest import Cli
from tests.commands.predict.conftest import write_bundle
from tests.commands.submit.test_batch_script import parse_options, run_job
from tests.support.helpers import write_images


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a runner of command lines."""
    return Cli(capsys)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "model", seed=0)
    write_images(tmp_path / "photos", "a.png")


def test_script_of_a_prediction_runs_predict_in_an_array(cli: Cli, tmp_path: Path) -> None:
    text = cli.ok(
        "submit", "--verb", "predict", "model", "photos", "--shards", "out/parts", "--array", 3,
        "--top-k", 2, "--time", "1:00:00", "--gpus-per-node", 2, "--dry-run",
    ).out  # fmt: skip
    options = parse_options(text)
    assert options["--array"] == "1-3"
    assert f"export {NUM_TASKS_VARIABLE}=3" in text.splitlines()
    assert options["--output"] == f"{tmp_path}/out/parts.task-%a.log"
    assert options["--ntasks-per-node"] == "2"
    process = run_job(
        text, FINETUNE="finetune", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2"
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    expected = ("finetune", "predict", "model", "photos", "--top-k", "2", "--shards")
    assert "".join(f"<{word}>" for word in (*expected, f"{tmp_path}/out/parts")) in process.stdout


def test_script_of_one_task_is_no_array(tmp_path: Path) -> None:
    text = render_prediction_script(
        ("model", "photos"), JobResources(), tmp_path / "parts", num_tasks=1
    )
    options = parse_options(text)
    assert "--array" not in options
    assert options["--output"] == f"{tmp_path}/parts.log"


def test_staging_of_images_that_are_read_once_is_refused(tmp_path: Path) -> None:
    text = render_prediction_script(
        ("model", "photos"), JobResources(), tmp_path / "parts", num_tasks=1
    )
    process = run_job(text, FINETUNE="finetune", STAGE="1", LOCAL_DISK=str(tmp_path / "disk"))
    assert process.returncode == 2
    assert "STAGE=1 cannot apply to finetune predict" in process.stderr
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (("model", "photos"), 2, "add --shards FOLDER"),
        (("model", "photos", "--shards", "x", "--aray", "2"), 2, "'--array'?"),
        (("model", "gone", "--shards", "x"), 3, "gone does not exist"),
        (("gone", "photos", "--shards", "x"), 5, "gone does not exist"),
        (("model", "-", "--shards", "x"), 2, "standard input"),
        (("model", "photos", "--shards", "x", "--output", "a.csv"), 2, "--output a.csv"),
        (("model", "--shards", "x"), 2, "images are missing"),
        (("model", "photos", "--shards", "x", "--reject", "--tta", "crops"), 2, "with --tta crops"),
        (("model", "photos", "--shards", "x", "--reject", "--image-size", "64"), 2, "-size 64"),
        (("model", "photos", "--shards", "x", "--reject", "--prior", "uniform"), 2, "--prior uni"),
        (("model", "photos", "--shards", "x", "--reject", "--temperature", "2"), 2, "ature 2"),
        (("model", "photos", "--shards", "x", "--reject", "recall=1"), 2, "recall is no rule"),
        (("model", "photos", "--shards", "x", "--tta", "flips"), 2, "--tta flips: unknown"),
        (("model", "photos", "--shards", "x", "--device", "gpu"), 2, "--device gpu"),
        (("model", "photos", "--shards", "x", "--temperature", "0"), 2, "--temperature 0 is no"),
        (("model", "photos", "--shards", "x", "--weights", "val"), 2, "but there is one"),
        (("model", "photos", "--shards", "x", "--weights", "mean"), 2, "--weights mean: unkn"),
        (("model", "model", "photos", "--shards", "x", "--reject"), 4, "the mean of 2 models"),
        (("model", "./model", "photos", "--shards", "x"), 2, "model is given twice"),
        (("model", "photos", "--shards", "x", "--reject"), 5, "has no rejection.safetensors"),
        (("model", "photos", "--shards", "x", "--prior", "uniform"), 2, "does not state the class"),
        (("model", "photos", "--shards", "x", "--tta", "hflip"), 2, "did not record"),
        (("model", "photos", "--shards", "photos"), 5, "is not empty"),
        (("model", "photos", "--shards", "photos/a.png"), 5, "is a file"),
        (("labels", "photos", "--shards", "x", "--top-k", "2"), 2, "--top-k 2 cannot apply"),
        (("labels", "photos", "--shards", "x", "--temperature", "2"), 2, "multi-label model"),
        (("labels", "photos", "--shards", "x", "--prior", "train"), 2, "multi-label model"),
        (("model", "photos", "--shards", "parts", "--top-k", "2"), 5, "--top-k (before: 1"),
        (("model", "photos", "--shards", "parts", "--part-size", "7"), 5, "--part-size (before"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    cli: Cli, tmp_path: Path, args: tuple[str, ...], code: int, part: str
) -> None:
    if args[0] == "labels":
        card = replace(load_model(Path("model")).card, thresholds=(0.5,) * 3)
        save_bundle(load_model(Path("model")).network, card, Path("labels"))
    if "parts" in args:
        predict_shards(
            [Path("model")], [Path("photos")], Path("parts"), options=PredictOptions(device="cpu"),
            reporter=Reporter(),
        )  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    assert part in cli.fails("submit", "--verb", "predict", *args, code=code)
    assert sorted(tmp_path.rglob("*")) == before


def test_array_and_verb_are_checked(cli: Cli) -> None:
    assert "--array 2 cannot apply to a fit" in cli.fails("submit", "photos", "--array", 2, code=2)
    assert "--verb eval: unknown" in cli.fails("submit", "photos", "--verb", "eval", code=2)
