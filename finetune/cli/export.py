"""The command ``export``: its options and its output."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options.model_options import Json, Models, Prior, Weights, check_models
from finetune.cli.render.output import build_console_reporter, show_result
from finetune.units import format_count, format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


def export(
    models: Models,
    output: Annotated[Path, typer.Option(help="Folder to create.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images for the parity check.  [validation images of the run]"),
    ] = None,
    weights: Weights = "equal",
    soup: Annotated[
        str | None,
        typer.Option(
            metavar="SOUP",
            help="Average the weights of runs that started from the same weights into one network: "
            "greedy (those that help on validation images) or uniform (all).",
        ),
    ] = None,
    prior: Prior = None,
    as_json: Json = False,
) -> None:
    """Export a model, or several as one, as a folder that finetune and timm can load."""
    check_models(models, prior)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.export import export as command

    result = command(
        models, output, images=images, weights=weights, soup=soup, prior=prior, reporter=reporter
    )

    show_result(reporter, result.to_json(), lambda tree: _show_export(reporter, tree))


def _show_export(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    rows = {
        "model": tree["output"],
        "files": ", ".join(tree["files"]),
        "prior": tree["prior"]["target_prior"],
    }
    if (parity := tree["parity"]) is not None:
        is_multi_label = parity["num_same_labels"] is not None
        same = "labels at the thresholds" if is_multi_label else "top-1 class"
        num_same = parity["num_same_labels" if is_multi_label else "num_same_top1"]
        # a member may be one that timm cannot read
        reader = "the exported ensemble" if tree["members"] else "timm"
        rows["parity"] = (
            f"{reader} predicts the same {same} on {num_same} of "
            f"{format_count(parity['num_images'], 'image')}; probabilities differ by at most "
            f"{format_scientific(parity['max_abs_diff'])}"
        )
    reporter.print_pairs(rows)
