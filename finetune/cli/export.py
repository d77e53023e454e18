"""The command ``export``: its options and its output."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.bundle.runtimes.model_paths import EXPORTABLE_KINDS
from finetune.cli.options.model_options import Json, Models, Prior, Weights, check_models
from finetune.cli.render.output import build_console_reporter, show_result
from finetune.cli.render.precision_table import show_precision
from finetune.exporters.export_formats import (
    DEFAULT_FORMAT,
    DEFAULT_MAX_DROP,
    FORMATS,
    PRECISIONS,
    ExportOptions,
    check_options,
    get_format,
    resolve_max_drop,
)
from finetune.report.number_formats import format_close_loss, format_metric, is_loss
from finetune.system.garbage_collection import import_without_collection
from finetune.units import format_count, format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


def export(
    models: Models,
    format_name: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help=f"What to write: {', '.join(FORMATS)}."),
    ] = DEFAULT_FORMAT,
    output: Annotated[
        Path | None, typer.Option(help="Folder to create.  [RUN/exports/FORMAT]")
    ] = None,
    include_preprocessing: Annotated[
        bool,
        typer.Option(
            "--include-preprocessing",
            help="Write a file that takes photos (uint8) and gives probabilities: resizing, crop, "
            "normalisation, softmax, temperature and prior are part of it.",
        ),
    ] = False,
    precision: Annotated[
        str,
        typer.Option(metavar="PRECISION", help=f"Type of the numbers: {', '.join(PRECISIONS)}."),
    ] = "fp32",
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Points of accuracy (multi-label: of mean average precision, and of macro F1) on "
            "the images that fp16 or int8 may lose; a file that loses more is not written.  "
            f"[{DEFAULT_MAX_DROP:g}]",
            show_default=False,
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(help="Version of the ONNX operators.  [18]", show_default=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Images for the parity check, labelled ones for metrics.  [validation images of "
            "the run]"
        ),
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
    """Export a model, or several as one, and compare the files with it on real images."""
    check_models(models, prior, kinds=EXPORTABLE_KINDS, has_images=False)
    check_options(get_format(format_name), ExportOptions(include_preprocessing, precision, opset))
    resolve_max_drop(max_drop, precision)
    reporter = build_console_reporter(json_output=as_json)
    with import_without_collection():
        from finetune.commands.export.export import export as command

    result = command(
        models,
        output,
        format=format_name,
        include_preprocessing=include_preprocessing,
        precision=precision,
        max_drop=max_drop,
        opset=opset,
        images=images,
        weights=weights,
        soup=soup,
        prior=prior,
        reporter=reporter,
    )

    show_result(reporter, result.to_json(), lambda tree: _show_export(reporter, tree))


def _show_export(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    rows = {
        "model": tree["output"],
        "files": ", ".join(tree["files"]),
        "prior": tree["prior"]["target_prior"],
    }
    if tree["parity"] is not None:
        # a member may be one that timm cannot read
        reader = "the exported ensemble" if tree["format"] == "ensemble" else tree["runtime"]
        rows["parity"] = _describe_parity(tree["parity"], reader)
        comparison = tree["parity"].get("comparison")
        if comparison is None:
            rows |= _list_metrics(tree["parity"])
    reporter.print_pairs(rows)
    if tree["parity"] is not None and comparison is not None:
        show_precision(reporter, comparison, split=tree["parity"]["split"])


def _describe_parity(parity: Mapping[str, Any], reader: str) -> str:
    is_multi_label = parity["num_same_labels"] is not None
    same = "labels at the thresholds" if is_multi_label else "top-1 class"
    num_same = parity["num_same_labels" if is_multi_label else "num_same_top1"]
    return (
        f"{reader} predicts the same {same} on {num_same} of "
        f"{format_count(parity['num_images'], 'image')}; probabilities differ by at most "
        f"{format_scientific(parity['max_abs_diff'])}"
    )


def _list_metrics(parity: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics of the exported model on the compared images, and of the evaluated one."""
    split = "" if parity["split"] is None else f"{parity['split']} "
    return {
        f"{split}{name.replace('_', ' ')}": f"{_format_metric(values['export'], name)} (evaluated "
        f"model: {_format_metric(values['model'], name)})"
        for name, values in (parity["metrics"] or {}).items()
    }


def _format_metric(value: float, name: str) -> str:
    """Return a metric in percent, and a loss with four decimals."""
    return format_close_loss(value) if is_loss(name) else format_metric(value, name)
