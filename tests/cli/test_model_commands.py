"""Command lines with several models, views and sizes: which path is what, and what is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune.bundle.bundle import load_model, save_bundle
from tests.cli.conftest import Cli

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

CPU = ("--device", "cpu")


@pytest.fixture
def models(trained: FitResult, tmp_path: Path) -> tuple[Path, Path]:
    """Return a run folder, and a bundle of the same classes whose card allows flips."""
    bundle = load_model(trained.run_dir)
    card = replace(bundle.card, facts={**bundle.card.facts, "flipped": True})
    save_bundle(bundle.network, card, tmp_path / "flips")
    return trained.run_dir, tmp_path / "flips"


@pytest.mark.runs
def test_evaluate_takes_last_path_as_images_unless_it_is_a_model(
    cli: Cli, models: tuple[Path, Path], insects: Path
) -> None:
    run, bundle = models
    held_out = cli.ok("evaluate", run, bundle, *CPU, "--json").json
    assert (held_out["split"], len(held_out["members"])) == ("test", 2)
    everything = cli.ok("evaluate", bundle, run, insects / ".." / insects.name, *CPU, "--json").json
    assert everything["data"].endswith("insects")
    alone = cli.ok("evaluate", bundle, insects, *CPU, "--json").json
    assert (alone["members"], alone["num_images"]) == ([], 38)


def test_predict_takes_last_path_as_images(
    cli: Cli, models: tuple[Path, Path], insects: Path, tmp_path: Path
) -> None:
    run, bundle = models
    tree = cli.ok("predict", run, bundle, insects / "fly", *CPU, "--json").json
    assert (tree["num_images"], len(tree["members"])) == (12, 2)
    output = cli.ok("predict", run, bundle, insects / "fly", *CPU, "--output", tmp_path / "p.csv")
    assert "mean of 2 models" in output.words
    for paths in ((run, bundle), (run,)):
        message = cli.fails("predict", *paths, *CPU, code=2)
        assert "images are missing" in message
        assert "MODEL... IMAGES" in message


def test_images_between_models_are_refused_with_the_order(
    cli: Cli, models: tuple[Path, Path], insects: Path
) -> None:
    message = cli.fails("evaluate", models[0], insects, models[1], *CPU, code=5)
    assert f"{insects} is no model. Give a run folder" in message
    assert "images last" in message


@pytest.mark.parametrize("command", ["serve", "export"])
def test_commands_without_images_name_the_models_that_they_take(
    cli: Cli, models: tuple[Path, Path], insects: Path, command: str
) -> None:
    for paths in ((models[0], insects), ("gone",)):
        message = cli.fails(command, *paths, code=5)
        assert "images last" not in message
        assert "a folder of timm or transformers, or hf-hub:user/name." in message
        assert (".onnx, .pt2, .xml" in message) == (command == "serve")


@pytest.mark.runs
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_tta_alone_is_hflip_and_takes_names(
    cli: Cli, models: tuple[Path, Path], insects: Path, command: str
) -> None:
    _, bundle = models
    for args, views in (
        ((bundle, "--tta", insects), "hflip"),
        ((bundle, insects, "--tta"), "hflip"),
        (("--tta", bundle, insects, "--batch-size", 8), "hflip"),
        ((bundle, "--tta", "crops", insects), "crops"),
        ((bundle, insects, "--tta=sizes"), "sizes"),
        ((bundle, insects, "--tta", "none"), "none"),
    ):
        tree = cli.ok(command, *args, *CPU, "--json").json
        assert (tree["views"], tree["tta"]) == (views, views != "none")
    message = cli.fails(command, bundle, insects, "--tta", "corners", *CPU, code=2)
    assert "Choose one of none, hflip, crops, crops10, sizes" in message


def test_image_size_and_views_are_told(cli: Cli, models: tuple[Path, Path], insects: Path) -> None:
    args = ("evaluate", *models, insects, "--image-size", 48, "--tta", "crops", *CPU)
    words = cli.ok(*args).words
    for text in ("models mean of 2 (weights 0.5, 0.5)", "five crops", "image size 48 px"):
        assert text in words


@pytest.mark.runs
def test_export_of_several_models_prints_members_folder(
    cli: Cli, models: tuple[Path, Path], tmp_path: Path
) -> None:
    words = cli.ok("export", *models, "--output", tmp_path / "model").words
    assert "finetune.json, members" in words
    assert "the exported ensemble predicts the same top-1 class" in words
    message = cli.fails(
        "export", models[0], "--output", tmp_path / "soup", "--soup", "greedy", code=2
    )
    assert "there is one" in message


def test_weights_that_cannot_be_fitted_are_refused(
    cli: Cli, models: tuple[Path, Path], insects: Path
) -> None:
    message = cli.fails("predict", *models, insects, "--weights", "val", *CPU, code=2)
    assert f"{models[1]} does not lie in a run folder" in message
