"""The ``compare`` command: its options, and the table that it prints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options.config_flags import collect_flags
from finetune.cli.options.run_arguments import build_run_config, split_args
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, print_json
from finetune.distributed.launch import detect_launch
from finetune.system.garbage_collection import import_without_collection
from finetune.units import format_count

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


def compare(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA [KEY=VALUE]...",
            help="Folder or CSV, as for fit. Then config keys that a linear probe depends on.",
        ),
    ] = None,
    backbones: Annotated[
        str, typer.Option(help="Comma-separated names: timm models, googlenet or alexnet.")
    ] = "",
    weights: Annotated[
        str,
        typer.Option(
            help="hub, or a folder with one entry per backbone: NAME.pth, NAME-<hash>.pth, "
            "NAME_<suffix>.pth (or .safetensors), or a timm folder NAME/."
        ),
    ] = "hub",
    image_size: Annotated[
        str | None, typer.Option(help="Side of the input in pixels.  [auto]")
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(
            help="Class imbalance strategy: none, weighted, logit_adjusted, … "
            "(see: finetune config).  [auto]"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed or auto.  [auto]")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Seed of the split.  [0]")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file to write the table to.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to standard output.")
    ] = False,
) -> None:
    """Compare backbones by accuracy (linear probe), speed and memory."""
    flags = collect_flags(
        {
            "--image-size": image_size,
            "--imbalance": imbalance,
            "--precision": precision,
            "--seed": seed,
        }
    )
    names = [name.strip() for name in backbones.split(",") if name.strip()]
    from finetune.commands.compare.checks import check_compare, check_single_process
    from finetune.config.load import parse_assignments

    with exit_on_stop_request():
        check_single_process(detect_launch())
        path, settings = split_args(args or [])
        config = build_run_config(path, parse_assignments(settings), flags, None)
        check_compare(config, names, weights=weights, csv=csv)
        is_printed_only = csv is None and not as_json
        reporter = build_console_reporter(json_output=as_json, ends_with_reader=is_printed_only)
        with import_without_collection():
            from finetune.commands.compare.compare import compare as command

        result = command(config, names, weights=weights, csv=csv, reporter=reporter)
    tree = result.to_json()
    if as_json:
        print_json(tree)
    else:
        _show_comparison(reporter, tree, csv)
    if result.failures:
        raise typer.Exit(result.failures[0].exit_code)


def _show_comparison(
    reporter: "ConsoleReporter", tree: Mapping[str, Any], csv: Path | None
) -> None:
    from finetune.cli.render.networks.comparison_table import build_comparison_table

    if tree["backbones"]:
        reporter.note("")
        reporter.console.print(build_comparison_table(tree, width=reporter.console.width))
        reporter.note("")
        reporter.console.print(_build_legend(tree))
        _show_stages(reporter, tree)
    if tree["significance_summary"]:
        reporter.console.print(tree["significance_summary"], markup=False)
    for failure in tree["failures"]:
        reporter.error(f"{failure['backbone']}: {failure['reason']}")
    if csv is not None:
        reporter.note(f"Table written to {csv}")
    if tree["next_command"]:
        reporter.print_commands("Next:", [tree["next_command"]])


def _show_stages(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    """Print the accuracy of heads on each stage of each backbone."""
    from finetune.cli.render.networks.stage_lines import build_stage_rows

    rows = build_stage_rows(tree["backbones"])
    if rows:
        reporter.console.print(
            "\nHeads on the last features, then on earlier stages (accuracy %, cross-validated on "
            "training images):"
        )
        reporter.print_pairs(dict(rows))
        reporter.note("")


def _build_legend(tree: Mapping[str, Any]) -> str:
    """Return the explanation of the columns, which their short headers cannot hold."""
    from finetune.cli.render.networks.comparison_table import find_compared_metric

    batch_size = tree["training_memory_micro_batch_size"]
    images = format_count(tree["num_val_images"], "validation image")
    lines = [
        f"accuracy: linear probe on {images}."
        if find_compared_metric(tree["backbones"][0]) == "accuracy"
        else "mean avg. prec.: mean average precision over labels of a linear probe on "
        f"{images}.\nHeads on earlier stages are left out: they are compared by the one class of "
        "an image.",
        "images/s: inference on this machine.",
        f"memory: training step of all layers, batch size {batch_size}.",
    ]
    figures = [row for row in tree["backbones"] if row["imagenet_top1_error"] is not None]
    if figures:
        lines.append("ImageNet error: published top-1/top-5 error of these weights, single crop.")
    if not all(row["imagenet_is_of_weights"] for row in figures):
        lines.append("* of the architecture as others trained it, not of these weights.")
    return "\n".join(lines)
