"""The verbs, in this process: what they print, and what they take."""

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
def copied(trained: FitResult, tmp_path: Path) -> Path:
    """Return a copy of the run, to go on with."""
    return Path(shutil.copytree(trained.run_dir, tmp_path / "copied"))


def test_fit_prints_one_object_with_run_seconds_metrics_and_plan(
    cli: Cli, photos: Path, tmp_path: Path
) -> None:
    said = cli.ok("fit", photos, *SMALL, "--output", tmp_path / "run", "--json")
    tree = said.json
    assert tree.keys() == {
        "run_dir", "seconds", "metrics", "evaluations", "calibration", "plan",
    }  # fmt: skip
    assert tree["calibration"] is None, "these are few images"
    assert tree["run_dir"] == str(tmp_path / "run")
    assert tree["seconds"] > 0
    assert tree["metrics"].keys() == {"val"}
    assert tree["metrics"]["val"].keys() == {
        "loss", "accuracy", "balanced_accuracy", "macro_f1", "rarest_third_recall",
    }  # fmt: skip
    assert tree["plan"]["model"]["backbone"] == "test_resnet"
    assert "epoch" in said.err, "a person who waits still sees something"

    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml", "manifest.csv", "rejected.csv", "audit.json", "audit.csv", "metrics.csv",
        "checkpoints", "bundle", ".done", ".lock",
    }  # fmt: skip
    assert (tmp_path / "latest").resolve() == (tmp_path / "run").resolve()
    measured = cli.ok("evaluate", tmp_path / "latest", "--device", "cpu", "--json").json
    assert measured["metrics"] == tree["metrics"]["val"]
    assert tree["evaluations"]["val"].items() <= measured.items()
    assert measured["rarest_third"] == {"classes": ["dog"], "by": "training images"}
    assert measured["tta"] is False

    refused = cli.refused("evaluate", tmp_path / "latest", "--device", "cpu", "--tta", code=2)
    assert "--tta cannot apply to a model trained with augment.name=none" in refused


def test_fit_for_a_person_says_what_comes_next(cli: Cli, photos: Path, tmp_path: Path) -> None:
    said = cli.ok("fit", photos, *SMALL, "--output", tmp_path / "run")
    assert "best model on val:" in said.out
    assert "rarest_third_recall" in said.out
    assert [line for line in said.out.splitlines() if line.startswith("dog ")]
    assert f"finetune evaluate {tmp_path / 'run'}" in said.out
    assert said.err == ""


def test_a_dry_run_shows_the_plan_and_keeps_nothing_but_what_it_saw_of_the_images(
    cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    before = set(tmp_path.rglob("*"))
    words = ("fit", photos, *SMALL, "data.cache=on", "--dry-run")
    said = cli.ok(*words, "--json")
    assert said.json.keys() == {"plan"}
    assert said.json["plan"]["training"]["epochs"] == 1
    assert "what trains" in cli.ok(*words).out
    cache = tmp_path / "cache"
    written = set(tmp_path.rglob("*")) - set(before)
    assert all(path == cache or cache in path.parents for path in written)
    (store,) = (path for path in (cache / "pixels").iterdir() if path.is_dir())
    assert store.name.startswith("looks-1-")


def test_a_dry_run_of_a_run_that_goes_on_changes_nothing(
    cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.stat().st_mtime_ns for file in copied.rglob("*")}
    words = ("fit", "--resume", copied, "--epochs", 9, "--dry-run")
    plan = cli.ok(*words, "--json").json["plan"]
    assert plan["training"]["epochs"] == 9
    assert plan["changed"]["trainer.epochs"] == 9
    assert "Goes on after epoch 2" in " ".join(cli.ok(*words).out.split())
    assert {file: file.stat().st_mtime_ns for file in copied.rglob("*")} == before


def test_a_dry_run_says_what_the_run_will_cost(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "fit", photos, *SMALL[6:], "--backbone", "resnet10t", "--weights", "random",
        "--epochs", "3", "--unfreeze", "head_first", "--dry-run",
    )  # fmt: skip
    cost = cli.ok(*words, "--json").json["plan"]["cost"]
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
    lines = cli.ok(*words).out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = {line.split()[0] for line in lines if line.strip()}
    assert {"memory", "time", "images", "pixels"} <= shown


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
def test_a_flag_is_a_key_of_the_config(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    seen: list[Config] = []

    def keep(config: Config, **_: object) -> dict[str, Any]:
        seen.append(config)
        return {}

    monkeypatch.setattr("finetune.commands.fit.fit.plan_fit", keep)
    key, value = FLAGS[flag]
    word = "3e-4" if flag == "--lr" else str(value)
    cli.ok("fit", photos, flag, word, "--dry-run", "--json")
    cli.ok("fit", photos, f"{key}={word}", "--dry-run", "--json")
    assert seen[0] == seen[1], "the flag and its key say the same"
    found: Any = seen[0]
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_every_flag_of_the_help_is_tested_here(cli: Cli) -> None:
    words = cli.ok("fit", "--help").out.split()
    options = {word for word in words if word.startswith("--")}
    assert options - {"--help"} == FLAGS.keys() | {"--config", "--resume", "--dry-run", "--json"}


def test_a_flag_wins_over_the_file_and_a_contradiction_is_refused(
    cli: Cli, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("trainer: {epochs: 9, accelerator: cpu}\noptim: {lr: 0.5}\n")
    words = ("fit", photos, "--config", file, *SMALL[:-1], "--dry-run", "--json")
    plan = cli.ok(*words).json["plan"]
    assert plan["training"]["epochs"] == 1
    assert plan["changed"]["optim.lr"] == 0.5
    message = cli.refused(*words, "trainer.epochs=5", code=2)
    assert "trainer.epochs: --epochs 1 and trainer.epochs=5 differ; keep one" in message


def test_a_folder_with_an_equals_sign_is_named_with_its_place(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos.rename(photos.parent / "year=2024")
    monkeypatch.chdir(photos.parent)
    plan = cli.ok("fit", "./year=2024", *SMALL, "--dry-run", "--json").json["plan"]
    assert plan["data"]["path"] == str(photos.parent / "year=2024")
    assert "year: unknown key" in cli.refused("fit", "year=2024", code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b"), "Two data paths, a and b; keep one"),
        ((), "No images: name a folder or a CSV, as in: finetune fit photos/"),
        (("--resume", "run", "--config", "a.yaml"), "--config cannot apply with --resume"),
        (("--resume", "run", "--output", "other"), "--output cannot apply with --resume"),
    ],
)
def test_words_that_cannot_apply_are_refused(
    cli: Cli, words: tuple[str, ...], message: str
) -> None:
    assert message in cli.refused("fit", *words, code=2)


def test_a_complete_run_says_that_nothing_is_left(
    cli: Cli, trained: FitResult, copied: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    said = cli.ok("fit", "--resume", copied, "--json")
    assert said.json["metrics"] == {k: dict(v) for k, v in trained.metrics.items()}
    assert said.json["run_dir"] == str(copied)
    assert "The run is complete; nothing is left to do. Longer: add --epochs." in said.err
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_complete_run_of_an_older_finetune_shows_what_it_has(cli: Cli, copied: Path) -> None:
    file = copied / "bundle" / "finetune.json"
    card = json.loads(file.read_text(encoding="utf-8"))
    del card["facts"]["evaluations"], card["priors"]
    file.write_text(json.dumps(card), encoding="utf-8")
    out = cli.ok("fit", "--resume", copied).out
    assert "best model on test: loss " in out
    assert cli.ok("fit", "--resume", copied, "--json").json["evaluations"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lr", "0.5"), "optim.lr is 0.01 in the run and cannot become 0.5"),
        (
            ("--backbone", "vgg16"),
            "model.backbone is 'resnet10t' in the run and cannot become 'vgg16'",
        ),
        (("data.test_fraction=0.1",), "data.test_fraction is 0.2 in the run and cannot become 0.1"),
        (("--seed", "1"), "seed is 0 in the run and cannot become 1"),
    ],
)
def test_settings_that_would_make_another_run_are_refused_with_both_values(
    cli: Cli, copied: Path, words: tuple[str, ...], message: str
) -> None:
    assert message in cli.refused("fit", "--resume", copied, *words, code=2)


def test_a_complete_run_goes_on_for_more_epochs(
    cli: Cli, copied: Path, insects: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(insects, tmp_path / "moved")
    said = cli.ok("fit", "--resume", copied, moved, "--epochs", "3", "--json")
    assert "Goes on after epoch 2." in said.err
    assert said.json["plan"]["training"]["epochs"] == 3
    with (copied / "metrics.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2", "3"]
    config = build_config(read_config_file(copied / "config.yaml"))
    assert (config.trainer.epochs, config.data.path) == (3, str(moved))


def test_evaluate_prints_one_object(cli: Cli, trained: FitResult, insects: Path) -> None:
    said = cli.ok("evaluate", trained.run_dir, "--device", "cpu", "--json")
    assert said.json["num_images"] == 7
    assert said.json["metrics"] == dict(trained.metrics["test"])
    assert {"accuracy", "balanced_accuracy", "macro_f1"} <= said.json["metrics"].keys()
    assert list(said.json["per_class"]) == ["bée", "fly", "wasp, red"]
    assert said.json["per_class"]["fly"].keys() == {
        "train_images", "support", "predicted", "precision", "recall", "recall_interval", "f1",
    }  # fmt: skip
    words = ("evaluate", trained.run_dir, insects, "--split", "val", "--batch-size", 3)
    assert "7 (val)" in cli.ok(*words, "--device", "cpu").out
    assert "--split dev: there are train, val, test" in cli.refused(
        "evaluate", trained.run_dir, "--split", "dev", code=2
    )


def test_predict_prints_csv_or_one_object_or_writes_a_file(
    cli: Cli, trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    words = ("predict", trained.run_dir, insects / "fly", "--device", "cpu")
    as_csv = cli.ok(*words).out
    rows = list(csv.DictReader(as_csv.splitlines()))
    assert len(rows) == 12
    tree = cli.ok(*words, "--json", "--top-k", "2").json
    assert tree["num_images"] == 12
    assert [entry["path"] for entry in tree["predictions"]] == [row["path"] for row in rows]
    assert all(len(entry["top"]) == 2 for entry in tree["predictions"])
    said = cli.ok(*words, "--output", tmp_path / "a.csv")
    assert said.out == f"12 predictions in {tmp_path / 'a.csv'}\n"
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == as_csv
    tree = cli.ok(*words, "--json", "--output", tmp_path / "a.csv").json
    assert tree["output"] == str(tmp_path / "a.csv")


def test_export_prints_one_object(cli: Cli, trained: FitResult, tmp_path: Path) -> None:
    tree = cli.ok("export", trained.run_dir, "--output", tmp_path / "one", "--json").json
    assert tree["output"] == str(tmp_path / "one")
    assert "model.safetensors" in tree["files"]
    assert tree["parity"]["num_images"] == tree["parity"]["same_top_class"] == 7
    out = cli.ok("export", trained.run_dir, "--output", tmp_path / "two").out
    assert "same top class on 7 of 7 images" in out


def test_a_prior_is_asked_for_and_said_on_the_command_line(
    cli: Cli, trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    run = trained.run_dir
    shares = tmp_path / "shares.csv"
    shares.write_text('class,share\nbée,8\nfly,1\n"wasp, red",1\n', encoding="utf-8")
    train = "prior the shares of the training images, as the network says"
    assert train in " ".join(cli.ok("evaluate", run, "--device", "cpu").out.split())
    words = ("evaluate", run, "--device", "cpu", "--prior")
    said = " ".join(cli.ok(*words, "uniform").out.split())
    assert "prior every class alike; the network's own: the shares of the training images" in said
    tree = cli.ok(*words, shares, "--json").json
    assert tree["prior"]["shares"] == pytest.approx({"bée": 0.8, "fly": 0.1, "wasp, red": 0.1})
    exported = cli.ok("export", run, "--output", tmp_path / "model", "--prior", shares, "--json")
    assert exported.json["parity"]["same_top_class"] == 7
    assert exported.json["prior"]["shares"] == pytest.approx(tree["prior"]["shares"])
    again = cli.ok("evaluate", tmp_path / "model", insects, "--device", "cpu", "--json").json
    whole = cli.ok("evaluate", run / "bundle", insects, "--device", "cpu", "--prior", shares,
                   "--json").json  # fmt: skip
    assert again["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    named = ("predict", run, insects / "fly", "--device", "cpu")
    predicted = cli.ok(*named, "--prior", "uniform")
    assert len(predicted.out.splitlines()) == 13, "the CSV alone"
    assert "prior: every class alike; the network's own" in predicted.err
    assert cli.ok(*named, "--json").json["prior"]["adjusted"] is False
    for verb in (("evaluate",), ("predict", insects), ("export", "--output", tmp_path / "no")):
        message = cli.refused(verb[0], run, *verb[1:], "--prior", "balanced", code=2)
        assert "--prior balanced: there are uniform, train, model, or a .json or .csv" in message
        assert "there is no such file" in cli.refused(
            verb[0], run, *verb[1:], "--prior", "gone.json", code=2
        )


def test_the_printed_config_is_the_default_and_every_key_has_a_comment(
    cli: Cli, tmp_path: Path
) -> None:
    text = cli.ok("config").out
    (tmp_path / "all.yaml").write_text(text, encoding="utf-8")
    assert build_config(read_config_file(tmp_path / "all.yaml")) == Config()
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if line and not line.lstrip().startswith("#"):
            assert above.lstrip().startswith("#") or above.endswith(":"), line
    assert cli.ok("config", "--json").json == yaml.safe_load(text)


@pytest.mark.slow
def test_the_demo_compares_two_accuracies(cli: Cli, tmp_path: Path) -> None:
    tree = cli.ok("demo", "--output", tmp_path / "demo", "--json").json
    assert tree["accuracy"]["finetuned"] > tree["accuracy"]["from_scratch"] > 0.2
    assert Path(tree["run_dir"], "bundle", "finetune.json").is_file()


def test_the_version_is_printed_alone(cli: Cli) -> None:
    assert cli.ok("--version").out == f"{finetune.__version__}\n"


def test_the_help_lists_the_verbs_of_users_alone(cli: Cli) -> None:
    out = cli.ok("--help").out
    for verb in ("fit", "evaluate", "predict", "export", "demo", "config"):
        assert f" {verb} " in out
    assert "join-run" not in out


TORCH_FREE = """
import json, sys
from finetune.cli.main import run
code = run(json.loads(sys.argv[1]))
heavy = {"torch", "timm", "pytorch_lightning", "albumentations", "torchvision", "wandb", "numpy"}
print()
print(json.dumps([code, sorted(heavy & sys.modules.keys())]))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
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
    ],
    ids=str,
)
def test_what_needs_no_network_imports_none(words: list[str], code: int) -> None:
    last = run_python(TORCH_FREE, json.dumps(words)).splitlines()[-1]
    assert json.loads(last) == [code, []]


@pytest.mark.parametrize("shares", ['{"bée": 1}', '{"bée": 1, "fyl": 1, "wasp, red": 1}', "{"])
@pytest.mark.parametrize("verb", [["evaluate"], ["predict", "."], ["export", "--output", "gone"]])
def test_mistakes_in_a_prior_s_file_are_found_without_torch(
    verb: list[str], shares: str, trained: FitResult, tmp_path: Path
) -> None:
    file = tmp_path / "shares.json"
    file.write_text(shares, encoding="utf-8")
    words = [verb[0], str(trained.run_dir), *verb[1:], "--prior", str(file)]
    last = run_python(TORCH_FREE, json.dumps(words)).splitlines()[-1]
    assert json.loads(last) == [2, []]
