"""The verb ``compare``: its options, and the table that it prints."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.fit import FLAG_KEYS, build_run_config, split_args
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, print_json
from finetune.distributed.launch import detect_launch

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


def compare(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA [KEY=VALUE]...",
            help="A folder or CSV as for fit; then any config keys that a probe depends on.",
        ),
    ] = None,
    backbones: Annotated[
        str, typer.Option(help="timm models, googlenet, alexnet; with commas between them.")
    ] = "",
    weights: Annotated[
        str,
        typer.Option(
            help="hub, or a folder with a file for each: NAME.pth, NAME-<hash>.pth, "
            "NAME_<anything>.pth, .safetensors, or a timm folder NAME/."
        ),
    ] = "hub",
    image_size: Annotated[
        str | None, typer.Option(help="Side of the input in pixels.  [auto]")
    ] = None,
    imbalance: Annotated[
        str | None, typer.Option(help="none, weighted, logit_adjusted, crt … (see README).  [auto]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed or auto.  [auto]")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Of the split.  [0]")] = None,
    csv: Annotated[Path | None, typer.Option(help="A CSV to write, too.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Probe several backbones on your images, and show what each is worth and costs."""
    values = {
        "--image-size": image_size,
        "--imbalance": imbalance,
        "--precision": precision,
        "--seed": seed,
    }
    flags = {FLAG_KEYS[flag]: (flag, value) for flag, value in values.items() if value is not None}
    names = [name.strip() for name in backbones.split(",") if name.strip()]
    from finetune.commands.compare.validate import check_compare, check_single_process
    from finetune.config.load import parse_assignments

    with exit_on_stop_request():
        check_single_process(detect_launch())
        path, settings = split_args(args or [])
        config = build_run_config(path, parse_assignments(settings), flags, None)
        check_compare(config, names, weights=weights, csv=csv)
        reporter = build_console_reporter(json_output=as_json)
        from finetune.commands.compare.compare import compare as command

        result = command(config, names, weights=weights, csv=csv, reporter=reporter)
    tree = result.to_json()
    if as_json:
        print_json(tree)
    else:
        _show_comparison(reporter, tree)
        if csv is not None:
            reporter.note(f"table: {csv}")
    if result.failures:
        raise typer.Exit(result.failures[0].exit_code)


def _show_comparison(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    from finetune.cli.render.comparison_table import build_comparison_table

    if tree["backbones"]:
        reporter.note("")
        reporter.console.print(build_comparison_table(tree, width=reporter.console.width))
        reporter.note("")
        reporter.console.print(_build_legend(tree))
    if tree["verdict"]:
        reporter.console.print(tree["verdict"], markup=False)
    for one in tree["failed"]:
        reporter.error(f"{one['backbone']}: {one['reason']}")
    if tree["next"]:
        reporter.print_commands("next:", [tree["next"]])


def _build_legend(tree: Mapping[str, Any]) -> str:
    """Say what the columns are that their heads have no room for."""
    batch = tree["training_memory_micro_batch_size"]
    said = (
        f"Accuracy: the probe's on {tree['validation_images']} validation images. Images/s: "
        f"forward passes on this machine. Memory: a training step of all layers, {batch} images."
    )
    if any(row["imagenet_top1_error"] is not None for row in tree["backbones"]):
        said += " ImageNet: top-1/top-5 error as first published, one crop."
    return said
