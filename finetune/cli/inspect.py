"""The command ``inspect``: its options and its output."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options.config_flags import FLAG_KEYS
from finetune.cli.options.run_arguments import build_run_config, split_args
from finetune.cli.render.output import build_console_reporter, exit_on_stop_request, show_result


def inspect(
    args: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA [KEY=VALUE]...",
            help="A folder of class folders, or of train/val/test folders of them, a CSV of "
            "path,label[,split][,group], or Parquet; then any config keys.",
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Also report likely label errors and cropped duplicates, using this backbone's "
            "features.  [none]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="hub, a .pth or .safetensors file, a timm or run folder.  [hub]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write.  [runs/audit-<data>]")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Regular expression that finds the group of an image in its path, such as "
            "'(?P<group>[^_]+)_'; sets data.group_by.  [none]",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Audit a dataset before training: class counts, duplicates, leakage, damaged files."""
    with exit_on_stop_request():
        options = {"--backbone": backbone, "--weights": weights, "--output": output}
        options["--group-by"] = group_by
        _run_inspect(args, options, as_json=as_json)


def _run_inspect(args: list[str], options: Mapping[str, Any], *, as_json: bool) -> None:
    from finetune.cli.render.audit_summary import describe_audit
    from finetune.config.load import parse_assignments

    path, settings = split_args(args)
    keys = {**FLAG_KEYS, "--group-by": "data.group_by"}
    flags = {keys[flag]: (flag, str(value)) for flag, value in options.items() if value is not None}
    config = build_run_config(path, parse_assignments(settings), flags, None)
    reporter = build_console_reporter(json_output=as_json)
    from finetune.commands.inspect.inspect import inspect as command

    result = command(config, reporter=reporter)

    def show_audit(tree: Mapping[str, Any]) -> None:
        for line in describe_audit(tree):
            reporter.note(line)
        reporter.note(f"written     {_describe_output(tree)}")

    show_result(reporter, result.to_json(), show_audit)


def _describe_output(tree: Mapping[str, Any]) -> str:
    """Return the output folder and the names of the files in it."""
    pictures = ", duplicates/*.jpg" if tree["duplicates"] else ""
    return f"{shlex.quote(tree['output'])}/: audit.json, audit.csv{pictures}"
