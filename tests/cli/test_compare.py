"""Tests of the ``compare`` command: its output, and checks that run before torch is imported."""

import csv
import io
import json
import shlex
from functools import partial
from pathlib import Path

import pytest

from finetune.cli.render.networks.comparison_table import build_comparison_table, wrap_name
from finetune.models.costs import throughput as forward_cost
from finetune.probe.cross_validation import fit_head
from tests.cli.conftest import Cli
from tests.support.helpers import run_python
from tests.support.runs import write_photos, write_weights

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

SMALL = (
    "data.num_workers=0", "trainer.accelerator=cpu", "--precision", "32-true", "--image-size", "32",
)  # fmt: skip
NAMES = "test_resnet, test_vit"


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "my animals")


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "test_resnet-0123abcd.pth")
    write_weights(folder / "test_vit.pth", "test_vit")
    write_weights(folder / "test_convnext.pth", "test_efficientnet")
    return folder


@pytest.fixture(autouse=True)
def _shorten_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_cost, "_MAX_BATCH_SECONDS", 0.02)
    monkeypatch.setattr(forward_cost, "_MAX_TOTAL_SECONDS", 0.02)
    monkeypatch.setattr("finetune.probe.linear_probe.fit_head", partial(fit_head, penalties=(0.1,)))


def test_compare_json_and_csv_have_all_backbones(
    cli: Cli, animals: Path, weights_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "table.csv"
    args = ("compare", animals, "--backbones", NAMES, "--weights", weights_dir, *SMALL)
    output = cli.ok(*args, "--seed", 2, "--csv", file, "--json")
    tree = output.json
    assert tree.keys() == {
        "data", "sorted_by", "num_val_images", "training_memory_micro_batch_size", "backbones",
        "failures", "significance_summary", "next_command", "seconds",
    }  # fmt: skip
    assert (tree["num_val_images"], tree["failures"]) == (15, [])
    best, other = tree["backbones"]
    assert {best["backbone"], other["backbone"]} == {"test_resnet", "test_vit"}
    assert best["metrics"]["accuracy"] >= other["metrics"]["accuracy"]
    low, high = best["accuracy_interval"]
    assert 0 <= low < best["metrics"]["accuracy"] <= high <= 1
    assert "[1/2] test_resnet: " in output.err, "progress is shown"
    lines = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    assert [line["backbone"] for line in lines] == [best["backbone"], other["backbone"]]


def test_compare_next_command_reuses_features(
    cli: Cli, animals: Path, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    args = ("compare", animals, "--backbones", NAMES, "--weights", weights_dir, *SMALL)
    out = cli.ok(*args, "--imbalance", "sqrt").out
    (line,) = [line for line in out.splitlines() if line.startswith("Next:")]
    command = shlex.split(line)[1:]
    assert command[:3] == ["finetune", "fit", str(animals)]
    assert "imbalance.strategy=sqrt" in command
    run = ("--unfreeze", "linear_probe", "--output", tmp_path / "run")
    assert "39 of 39 images had cached features" in cli.ok(*command[1:], *run).words


def test_compare_table_fits_80_columns_and_failure_is_reported(
    cli: Cli, animals: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = f"{NAMES},test_convnext"
    output = cli("compare", animals, "--backbones", names, "--weights", weights_dir, *SMALL)
    assert output.code == 4
    lines = output.out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("backbone"))
    assert lines[header].split()[:5] == ["backbone", "M", "G", "/s", "GB"]
    assert {line.split()[0] for line in lines[header + 1 : header + 3]} == {
        "test_resnet",
        "test_vit",
    }
    assert all(len(line) <= 80 for line in lines if not line.startswith("Next:"))
    assert "validation images" in output.out
    assert output.err.count("test_convnext") > 1
    assert "error: test_convnext: " in " ".join(output.err.split())


def build_tree(*names: str, score: str = "accuracy") -> dict[str, object]:
    return {
        "sorted_by": score,
        "backbones": [
            {
                "backbone": name,
                "num_parameters": 138_400_000,
                "gmacs": 15.47,
                "images_per_second": 1234.5,
                "training_memory_gb": None if name == "vgg16" else 12.345,
                "metrics": {"accuracy": 0.954, "macro_f1": 0.9, "loss": 0.1234},
                "accuracy_interval": [0.9081, 0.9776],
                "imagenet_top1_error": 28.5 if name == "vgg16" else None,
                "imagenet_top5_error": 9.9 if name == "vgg16" else None,
                "imagenet_is_of_weights": False if name == "vgg16" else None,
            }
            for name in names
        ],
    }


def print_table(tree: dict[str, object], width: int) -> list[str]:
    from rich.console import Console

    screen = io.StringIO()
    Console(file=screen, width=width).print(build_comparison_table(tree, width=width))
    return screen.getvalue().splitlines()


LONG = "vit_small_patch16_224.augreg_in21k_ft_in1k"


@pytest.mark.parametrize("score", ["accuracy", "macro_f1", "loss"])
def test_comparison_table_wraps_long_names(score: str) -> None:
    lines = print_table(build_tree("vgg16", LONG, "mobilenetv2_100", score=score), 80)
    assert max(map(len, lines)) <= 80
    first = lines[2].split()
    assert first[:7] == ["vgg16", "138.4", "15.5", "1234", "-", "95.4", "(90.8-97.8)"]
    assert first[-1] == "28.5/9.9*"
    assert "".join(line.split()[0] for line in lines[3:-1]) == LONG
    assert lines[-1].startswith("mobilenetv2_100 ")


def test_comparison_table_has_imagenet_column_if_known() -> None:
    assert not any("ImageNet" in line for line in print_table(build_tree("resnet18"), 80))
    assert any("ImageNet" in line for line in print_table(build_tree("resnet18", "vgg16"), 80))


def test_wrap_name_breaks_after_separators() -> None:
    assert wrap_name("resnet50", 12) == "resnet50"
    assert wrap_name("mobilenetv2_100", 12) == "mobilenetv2_\n100"
    assert wrap_name(LONG, 24) == "vit_small_patch16_224.\naugreg_in21k_ft_in1k"
    assert wrap_name("averylongnamewithoutasign", 12) == "averylongnamewithoutasign"


TORCH_FREE = """
import json, sys
from finetune.cli.main import run
code = run(json.loads(sys.argv[1]))
heavy = {"torch", "timm", "pytorch_lightning", "albumentations", "torchvision", "wandb", "numpy"}
print()
print(json.dumps([code, sorted(heavy & sys.modules.keys())]))
"""


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        ([".", "--backbones", ""], 2),
        ([".", "--backbones", "a", "trainer.epochs=3"], 2),
        ([".", "--backbones", "a", "--weights", "random"], 2),
        ([".", "--backbones", "a", "--weights", "no/such/folder"], 4),
        ([".", "--backbones", "a", "--csv", "."], 5),
        (["no/such/folder", "--backbones", "a"], 3),
    ],
    ids=str,
)
def test_compare_invalid_arguments_fail_without_torch(args: list[str], code: int) -> None:
    last = run_python(TORCH_FREE, json.dumps(["compare", *args])).splitlines()[-1]
    assert json.loads(last) == [code, []]
