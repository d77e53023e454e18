"""The command ``predict``: its options and its output."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.options.model_options import (
    BatchSize,
    Device,
    ImageSize,
    Json,
    Prior,
    TtaOption,
    Weights,
    check_models,
    is_model,
    parse_device,
)
from finetune.cli.render.output import build_console_reporter, print_json, print_text
from finetune.errors import ConfigError
from finetune.inference.tta import describe_tta, parse_tta
from finetune.types import Tta
from finetune.units import format_count, format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.commands.predict.predict_result import PredictSummary


def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL... IMAGES...",
            help="Run folder, bundle folder, checkpoint or exported model; the probabilities of "
            "several models are averaged. Then the images: a folder (searched recursively), image "
            "files, a .txt list of paths, a CSV, Parquet or tar files, or - for standard input.",
        ),
    ],
    lists: Annotated[
        list[Path] | None,
        typer.Option(
            "--list", metavar="FILE", help="Text file of paths of images, one a line (repeatable)."
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the images in a CSV or Parquet.  [usual]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write: .csv, .jsonl or .parquet.  [standard output]"),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="csv, jsonl or parquet.  [by the file, else csv]"),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Most probable classes listed per image.")
    ] = 1,
    all_probabilities: Annotated[
        bool, typer.Option("--all-probabilities", help="Add the probability of every class.")
    ] = False,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    tta: TtaOption = "none",
    image_size: ImageSize = None,
    weights: Weights = "equal",
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="Divisor of the logits.  [from the model card]"),
    ] = None,
    prior: Prior = None,
    saliency: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write each image beside a map of what its class depends on, as PNG; only "
            "maps that are better than random ones.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the classes of images."""
    lists = lists or []
    models, inputs = _separate_images(paths, lists)
    check_models(models, prior)
    views = parse_tta(tta)
    reporter = build_console_reporter(json_output=as_json or output is None)
    from finetune.commands.predict import predicted_files
    from finetune.commands.predict.prediction_job import PredictOptions

    options = PredictOptions(
        top_k, all_probabilities, parse_device(device), batch_size, views, image_size, weights,
        temperature, prior, column,
    )  # fmt: skip
    prints = output is None and not as_json
    summary = (
        predicted_files.collect_predictions if as_json else predicted_files.write_predictions
    )(
        models,
        inputs,
        lists=lists,
        options=options,
        output=output,
        output_format=output_format,
        print_text=print_text if prints else None,
        saliency=saliency,
        reporter=reporter,
    )
    if as_json:
        print_json(summary.to_json())
    _note_summary(summary, options.prior is not None, reporter)


def _separate_images(paths: Sequence[Path], lists: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the models, which come first, and the images.

    Raises:
        ConfigError: There are no images.
    """
    num_models = 1
    while num_models < len(paths) and is_model(paths[num_models]):
        num_models += 1
    models, inputs = list(paths[:num_models]), list(paths[num_models:])
    if not inputs and not lists:
        last = paths[-1]
        is_last_model = len(paths) > 1 or is_model(last)
        raise ConfigError(
            f"The images are missing: the last path, {last}, "
            f"{'is a model' if is_last_model else 'is the only one'}. Name one or more models, "
            f"and then the images: a folder, files, a list or a table, as in: finetune "
            f"predict MODEL... IMAGES"
        )
    return models, inputs


def _note_summary(summary: "PredictSummary", has_prior: bool, reporter: "ConsoleReporter") -> None:
    """Say what was written, and with which settings, unless the output alone was asked for."""
    is_adjusted = has_prior or summary.prior["adjusted"]
    num_members = len(summary.members)
    is_changed = summary.tta is not Tta.NONE or summary.temperature is not None
    if summary.output is not None or is_changed or num_members or is_adjusted:
        destination = "" if summary.output is None else f" written to {summary.output}"
        parts = [format_count(summary.num_images, "prediction") + destination]
        parts += [f"mean of {format_count(num_members, 'model')}"] if num_members else []
        parts += [describe_tta(summary.tta)] if summary.tta is not Tta.NONE else []
        if summary.temperature is not None:
            parts.append(f"temperature {format_scientific(summary.temperature, digits=6)}")
        reporter.note("; ".join(parts))
    if summary.saliency is not None:
        reporter.note(summary.saliency.describe())
    if is_adjusted:
        reporter.note(f"Class prior: {summary.prior['target_prior']}")
