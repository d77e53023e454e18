"""Tests of the commands, run in this process: their options, output and exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import finetune
from finetune.config.load import build_config, read_config_file
from finetune.config.schema import Config
from tests.cli.conftest import SMALL, Cli
from tests.support.helpers import run_python

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


@pytest.fixture
def copied_run(trained: FitResult, tmp_path: Path) -> Path:
    """Return a copy of the run, which may be resumed."""
    return Path(shutil.copytree(trained.run_dir, tmp_path / "copied"))


@pytest.mark.runs
def test_fit_json_has_run_metrics_and_plan(cli: Cli, photos: Path, tmp_path: Path) -> None:
    output = cli.ok("fit", photos, *SMALL, "--output", tmp_path / "run", "--json")
    tree = output.json
    assert tree.keys() == {
        "run_dir", "seconds", "metrics", "evaluations", "calibration", "prior_adjustment",
        "measured", "early_stop", "stages", "cross_validation", "diagnosis", "plan",
    }  # fmt: skip
    assert tree["early_stop"] is None
    assert tree["calibration"] is None, "too few images"
    assert tree["run_dir"] == str(tmp_path / "run")
    assert tree["seconds"] > 0
    assert tree["metrics"].keys() == {"val"}
    assert tree["metrics"]["val"].keys() == {
        "loss", "accuracy", "balanced_accuracy", "macro_f1", "rarest_third_recall",
    }  # fmt: skip
    assert tree["plan"]["model"]["backbone"] == "test_resnet"
    assert "epoch" in output.err, "progress is shown"

    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml", "manifest.csv", "rejected.csv", "audit.json", "audit.csv", "metrics.csv",
        "checkpoints", "bundle", ".done", ".lock", "diagnosis.json", "network.json",
        "val_predictions.npz", "report.html", "sessions.json",
    }  # fmt: skip
    assert (tmp_path / "latest").resolve() == (tmp_path / "run").resolve()
    evaluated = cli.ok("evaluate", tmp_path / "latest", "--device", "cpu", "--json").json
    assert evaluated["metrics"] == tree["metrics"]["val"]
    assert tree["evaluations"]["val"].items() <= evaluated.items()
    assert evaluated["rarest_third"] == {"classes": ["dog"], "ranked_by": "train_images"}
    assert evaluated["tta"] is False

    message = cli.fails("evaluate", tmp_path / "latest", "--device", "cpu", "--tta", code=2)
    assert "--tta" in message
    assert "augment.name=none" in message


@pytest.mark.runs
def test_fit_text_has_metrics_and_next_commands(cli: Cli, photos: Path, tmp_path: Path) -> None:
    output = cli.ok("fit", photos, *SMALL, "--output", tmp_path / "run")
    assert "val:" in output.out
    assert "rarest_third_recall" in output.out
    assert [line for line in output.out.splitlines() if line.startswith("dog ")]
    assert f"finetune evaluate {tmp_path / 'run'}" in output.out
    assert output.err == ""


def test_dry_run_prints_plan_and_writes_only_fingerprints(
    cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    before = set(tmp_path.rglob("*"))
    args = ("fit", photos, *SMALL, "data.cache=on", "--dry-run")
    output = cli.ok(*args, "--json")
    assert output.json.keys() == {"plan"}
    assert output.json["plan"]["training"]["epochs"] == 1
    assert "test_resnet" in cli.ok(*args).out
    cache = tmp_path / "cache"
    written = set(tmp_path.rglob("*")) - set(before)
    assert all(path == cache or cache in path.parents for path in written)
    (store,) = (path for path in (cache / "pixels").iterdir() if path.is_dir())
    assert store.name.startswith("fingerprints-2-")


def test_dry_run_of_resume_changes_nothing(
    cli: Cli, copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.stat().st_mtime_ns for file in copied_run.rglob("*")}
    args = ("fit", "--resume", copied_run, "--epochs", 9, "--dry-run")
    plan = cli.ok(*args, "--json").json["plan"]
    assert plan["training"]["epochs"] == 9
    assert plan["overrides"]["trainer.epochs"] == 9
    assert "epoch 2" in cli.ok(*args).words
    assert {file: file.stat().st_mtime_ns for file in copied_run.rglob("*")} == before


def test_dry_run_with_resume_auto_plans_the_run_in_the_output(
    cli: Cli, copied_run: Path, insects: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in copied_run.rglob("*")}
    args = ("fit", insects, "--output", copied_run, "--resume", "auto", "--dry-run")
    assert "The run is complete" in cli.ok(*args).words
    plan = cli.ok(*args, "--epochs", 9, "--json").json["plan"]
    assert plan["run_dir"] == str(copied_run)
    assert plan["overrides"] == {"trainer.epochs": 9}
    assert {file: file.stat().st_mtime_ns for file in copied_run.rglob("*")} == before


def test_plan_shows_overrides_as_yaml(cli: Cli, photos: Path) -> None:
    params = ("lr_schedule.name=step", "lr_schedule.params={every: 1, gamma: 0.7}")
    text = cli.ok("fit", photos, *SMALL, "--epochs", "3", *params, "--dry-run").words
    assert "lr_schedule.params={every: 1, gamma: 0.7}" in text


def test_dry_run_has_memory_and_time(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (
        "fit", photos, *SMALL[6:], "--backbone", "resnet10t", "--weights", "random",
        "--epochs", "3", "--unfreeze", "head_first", "--dry-run",
    )  # fmt: skip
    cost = cli.ok(*args, "--json").json["plan"]["cost"]
    memory = dict(cost["memory_gb"])
    assert memory.pop("free") > 0.1
    total = memory.pop("total")
    assert memory.keys() == {"parameters", "gradients", "optimizer", "activations"}
    assert all(gigabytes > 0 for gigabytes in memory.values())
    assert total == pytest.approx(sum(memory.values()), abs=0.003)
    assert cost["micro_batch_size"] == 4
    assert [(p["first_epoch"], p["last_epoch"]) for p in cost["phases"]] == [(1, 1), (2, 3)]
    assert all(phase["images_per_second"] > 0 for phase in cost["phases"])
    assert cost["seconds"] >= 0
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli.ok(*args).out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split("  ")[0] for line in lines}
    assert {"memory", "time", "images", "pixel cache"} <= rows


FLAGS = {
    "--backbone": ("model.backbone", "vgg11"),
    "--weights": ("model.weights", "random"),
    "--epochs": ("trainer.epochs", 3),
    "--batch-size": ("trainer.batch_size", 2),
    "--lr": ("optim.lr", 3e-4),
    "--image-size": ("data.image_size", 64),
    "--unfreeze": ("unfreeze.name", "gradual"),
    "--imbalance": ("imbalance.strategy", "sqrt"),
    "--augment": ("augment.name", "light"),
    "--precision": ("trainer.precision", "bf16-mixed"),
    "--devices": ("trainer.devices", 1),
    "--num-nodes": ("trainer.num_nodes", 1),
    "--seed": ("seed", 7),
    "--wandb": ("tracking.wandb", "offline"),
    "--output": ("output", "here/run"),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_flag_sets_config_key(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    configs: list[Config] = []

    def keep(config: Config, **_: object) -> dict[str, Any]:
        configs.append(config)
        return {}

    monkeypatch.setattr("finetune.commands.fit.fit.plan_fit", keep)
    key, value = FLAGS[flag]
    text = "3e-4" if flag == "--lr" else str(value)
    cli.ok("fit", photos, flag, text, "--dry-run", "--json")
    cli.ok("fit", photos, f"{key}={text}", "--dry-run", "--json")
    assert configs[0] == configs[1], "the flag sets its key"
    setting: Any = configs[0]
    for name in key.split("."):
        setting = getattr(setting, name)
    assert setting == value


def test_flags_of_help_are_all_tested(cli: Cli) -> None:
    words = cli.ok("fit", "--help").out.split()
    options = {word.rstrip(":,.") for word in words if word.startswith("--")}
    folds = {"--folds", "--fold", "--final"}  # tests/commands/cross_validation
    others = {"--config", "--resume", "--dry-run", "--layers", "--lr-find", "--check"}
    others |= {"--json", "--help", "--no-report"}
    assert options == FLAGS.keys() | folds | others


def test_flag_overrides_file_and_contradiction_fails(
    cli: Cli, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("trainer: {epochs: 9, accelerator: cpu}\noptim: {lr: 0.5}\n")
    args = ("fit", photos, "--config", file, *SMALL[:-1], "--dry-run", "--json")
    plan = cli.ok(*args).json["plan"]
    assert plan["training"]["epochs"] == 1
    assert plan["overrides"]["optim.lr"] == 0.5
    message = cli.fails(*args, "trainer.epochs=5", code=2)
    assert "--epochs 1" in message
    assert "trainer.epochs=5" in message


def test_data_path_with_equals_sign_needs_slash(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos.rename(photos.parent / "year=2024")
    monkeypatch.chdir(photos.parent)
    plan = cli.ok("fit", "./year=2024", *SMALL, "--dry-run", "--json").json["plan"]
    assert plan["data"]["path"] == str(photos.parent / "year=2024")
    assert "year: " in cli.fails("fit", "year=2024", code=2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("a", "b"), "a and b"),
        ((), "finetune fit photos/"),
        (("--resume", "run", "--config", "a.yaml"), "--config cannot be used with --resume"),
        (("--resume", "run", "--output", "other"), "--output cannot be used with --resume"),
    ],
)
def test_fit_invalid_arguments_fail(cli: Cli, args: tuple[str, ...], message: str) -> None:
    assert message in cli.fails("fit", *args, code=2)


def test_resume_complete_run_changes_nothing(
    cli: Cli, trained: FitResult, copied_run: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")}
    output = cli.ok("fit", "--resume", copied_run, "--json")
    assert output.json["metrics"] == {k: dict(v) for k, v in trained.metrics.items()}
    assert output.json["run_dir"] == str(copied_run)
    assert "complete" in output.err
    assert "--epochs" in output.err
    assert {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")} == before


def test_resume_complete_run_of_earlier_release_prints_metrics(cli: Cli, copied_run: Path) -> None:
    file = copied_run / "bundle" / "finetune.json"
    card = json.loads(file.read_text(encoding="utf-8"))
    del card["facts"]["evaluations"], card["priors"]
    file.write_text(json.dumps(card), encoding="utf-8")
    out = cli.ok("fit", "--resume", copied_run).out
    assert "test: loss " in out
    assert cli.ok("fit", "--resume", copied_run, "--json").json["evaluations"] == {}


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("--lr", "0.5"), ["optim.lr", "0.01", "0.5"]),
        (("--backbone", "vgg16"), ["model.backbone", "'resnet10t'", "'vgg16'"]),
        (("data.test_fraction=0.1",), ["data.test_fraction", "0.2", "0.1"]),
        (("--seed", "1"), ["seed", "0", "1"]),
    ],
)
def test_resume_changed_setting_fails_with_both_values(
    cli: Cli, copied_run: Path, args: tuple[str, ...], parts: list[str]
) -> None:
    message = cli.fails("fit", "--resume", copied_run, *args, code=2)
    assert [part for part in parts if part not in message] == []


@pytest.mark.runs
def test_resume_complete_run_with_more_epochs_continues(
    cli: Cli, copied_run: Path, insects: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(insects, tmp_path / "moved")
    output = cli.ok("fit", "--resume", copied_run, moved, "--epochs", "3", "--json")
    assert "epoch 2" in output.err
    assert output.json["plan"]["training"]["epochs"] == 3
    with (copied_run / "metrics.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2", "3"]
    config = build_config(read_config_file(copied_run / "config.yaml"))
    assert (config.trainer.epochs, config.data.path) == (3, str(moved))


def test_evaluate_json_has_metrics_and_details(cli: Cli, trained: FitResult, insects: Path) -> None:
    output = cli.ok("evaluate", trained.run_dir, "--device", "cpu", "--json")
    assert output.json["num_images"] == 7
    assert output.json["metrics"] == dict(trained.metrics["test"])
    assert {"accuracy", "balanced_accuracy", "macro_f1"} <= output.json["metrics"].keys()
    assert list(output.json["per_class"]) == ["bée", "fly", "wasp, red"]
    assert output.json["per_class"]["fly"].keys() == {
        "train_images", "support", "num_predicted", "precision", "recall", "recall_interval", "f1",
    }  # fmt: skip
    args = ("evaluate", trained.run_dir, insects, "--split", "val", "--batch-size", 3)
    assert "7 (val)" in cli.ok(*args, "--device", "cpu").out
    message = cli.fails("evaluate", trained.run_dir, "--split", "dev", code=2)
    assert "--split dev" in message
    assert "train, val, test" in message


def test_predict_prints_csv_or_json_or_writes_file(
    cli: Cli, trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    args = ("predict", trained.run_dir, insects / "fly", "--device", "cpu")
    as_csv = cli.ok(*args).out
    rows = list(csv.DictReader(as_csv.splitlines()))
    assert len(rows) == 12
    tree = cli.ok(*args, "--json", "--top-k", "2").json
    assert tree["num_images"] == 12
    assert [entry["path"] for entry in tree["predictions"]] == [row["path"] for row in rows]
    assert all(len(entry["top"]) == 2 for entry in tree["predictions"])
    output = cli.ok(*args, "--output", tmp_path / "a.csv")
    assert output.out == f"12 predictions written to {tmp_path / 'a.csv'}\n"
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == as_csv
    tree = cli.ok(*args, "--json", "--output", tmp_path / "a.csv").json
    assert tree["output"] == str(tmp_path / "a.csv")


def test_export_json_has_files_and_parity(cli: Cli, trained: FitResult, tmp_path: Path) -> None:
    tree = cli.ok("export", trained.run_dir, "--output", tmp_path / "one", "--json").json
    assert tree["output"] == str(tmp_path / "one")
    assert "model.safetensors" in tree["files"]
    assert tree["parity"]["num_images"] == tree["parity"]["num_same_top1"] == 7
    out = cli.ok("export", trained.run_dir, "--output", tmp_path / "two").out
    assert "7 of 7 images" in out


@pytest.mark.runs
def test_prior_option_is_used_and_reported(
    cli: Cli, trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    run = trained.run_dir
    file = tmp_path / "prior.csv"
    file.write_text('class,share\nbée,8\nfly,1\n"wasp, red",1\n', encoding="utf-8")
    args = ("evaluate", run, "--device", "cpu")
    default, uniform = (
        cli.ok(*args, "--json").json,
        cli.ok(*args, "--prior", "uniform", "--json").json,
    )
    assert (default["prior"]["requested"], default["prior"]["adjusted"]) == (None, False)
    assert (uniform["prior"]["requested"], uniform["prior"]["adjusted"]) == ("uniform", True)
    for tree, option in ((default, ()), (uniform, ("--prior", "uniform"))):
        assert f"prior {tree['prior']['target_prior']}" in cli.ok(*args, *option).words
    tree = cli.ok(*args, "--prior", file, "--json").json
    expected = {"bée": 0.8, "fly": 0.1, "wasp, red": 0.1}
    assert tree["prior"]["class_prior"] == pytest.approx(expected)
    exported = cli.ok("export", run, "--output", tmp_path / "model", "--prior", file, "--json").json
    assert exported["parity"]["num_same_top1"] == 7
    assert exported["prior"]["class_prior"] == pytest.approx(expected)
    of_export = cli.ok("evaluate", tmp_path / "model", insects, "--device", "cpu", "--json").json
    of_bundle = cli.ok("evaluate", run / "bundle", insects, "--device", "cpu", "--prior", file,
                       "--json").json  # fmt: skip
    assert of_export["metrics"] == pytest.approx(of_bundle["metrics"], abs=1e-5)
    predict = ("predict", run, insects / "fly", "--device", "cpu")
    predicted = cli.ok(*predict, "--prior", "uniform")
    assert len(predicted.out.splitlines()) == 13, "the CSV alone"
    assert uniform["prior"]["target_prior"] in predicted.err
    assert cli.ok(*predict, "--json").json["prior"]["adjusted"] is False
    for verb in (("evaluate",), ("predict", insects), ("export", "--output", tmp_path / "no")):
        message = cli.fails(verb[0], run, *verb[1:], "--prior", "balanced", code=2)
        for part in ("--prior balanced", "uniform", "train", "model", ".json", ".csv"):
            assert part in message
        assert "gone.json" in cli.fails(verb[0], run, *verb[1:], "--prior", "gone.json", code=2)


def test_config_prints_commented_defaults(cli: Cli, tmp_path: Path) -> None:
    text = cli.ok("config").out
    (tmp_path / "all.yaml").write_text(text, encoding="utf-8")
    assert build_config(read_config_file(tmp_path / "all.yaml")) == Config()
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if line and not line.lstrip().startswith("#"):
            assert above.lstrip().startswith("#") or above.endswith(":"), line
    assert cli.ok("config", "--json").json == yaml.safe_load(text)


@pytest.mark.slow
def test_demo_finetuned_beats_scratch(cli: Cli, tmp_path: Path) -> None:
    tree = cli.ok("demo", "--output", tmp_path / "demo", "--json").json
    assert tree["accuracy"]["finetuned"] > tree["accuracy"]["from_scratch"] > 0.2
    assert Path(tree["run_dir"], "bundle", "finetune.json").is_file()


def test_version_is_printed(cli: Cli) -> None:
    assert cli.ok("--version").out == f"{finetune.__version__}\n"


def test_help_lists_public_commands(cli: Cli) -> None:
    out = cli.ok("--help").out
    for verb in ("fit", "evaluate", "predict", "export", "demo", "config"):
        assert f" {verb} " in out
    assert "join-run" not in out


TORCH_FREE = """
import contextlib, io, json, sys
from finetune.cli.main import run
heavy = {"torch", "timm", "pytorch_lightning", "albumentations", "torchvision", "wandb", "numpy"}
found = []
for args in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = run(args)
    found.append([args, code, sorted(heavy & sys.modules.keys())])
print(json.dumps(found))
"""
"""Runs command lines one after another; heavy modules are those loaded after each."""

LIGHT_COMMANDS: list[tuple[list[str], int]] = [
    (["--help"], 0),
    (["fit", "--help"], 0),
    (["evaluate", "--help"], 0),
    (["config"], 0),
    (["--version"], 0),
    (["fit", ".", "optim.lrr=1"], 2),
    (["fit", "no/such/folder"], 3),
    (["fit", "--frobnicate"], 2),
    (["evaluate", "run", "--split", "dev"], 2),
    (["evaluate", ".", "--prior", "balanced"], 2),
    (["fit", ".", "--imbalance", "weighted", "imbalance.class_weights=balanced"], 2),
    (["fit", ".", "imbalance.class_weights_start_fraction=0.5"], 2),
]
"""Command lines that need no network, and their exit codes."""


def test_light_commands_and_invalid_prior_files_import_no_torch(
    trained: FitResult, tmp_path: Path
) -> None:
    commands = list(LIGHT_COMMANDS)
    for number, text in enumerate(('{"bée": 1}', '{"bée": 1, "fyl": 1, "wasp, red": 1}', "{")):
        file = tmp_path / f"prior-{number}.json"
        file.write_text(text, encoding="utf-8")
        for verb in (["evaluate"], ["predict", "."], ["export", "--output", "gone"]):
            args = [verb[0], str(trained.run_dir), *verb[1:], "--prior", str(file)]
            commands.append((args, 2))
    expected = [[args, code, []] for args, code in commands]
    assert (
        json.loads(run_python(TORCH_FREE, json.dumps([args for args, _ in commands]))) == expected
    )
