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
    RejectOption,
    TtaOption,
    Weights,
    check_models,
    is_model,
    parse_device,
)
from finetune.cli.options.shard_checks import check_shard_options, check_single_process
from finetune.cli.render.output import (
    build_console_reporter,
    exit_on_stop_request,
    print_json,
    print_text,
)
from finetune.distributed import signals
from finetune.errors import ConfigError
from finetune.evaluation.rejection.reject_options import parse_reject
from finetune.inference.tta import describe_tta, parse_tta
from finetune.system import output_streams
from finetune.system.garbage_collection import import_without_collection
from finetune.types import Tta
from finetune.units import format_count, format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.commands.predict.predict_options import PredictOptions
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
    shards: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of Parquet files to write instead, for millions of images: processes "
            "of torchrun, srun or a job array share the work, and a restart continues it.",
        ),
    ] = None,
    part_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Images of each Parquet file of --shards.  [10000]"),
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
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the features of each image before the classifier: .parquet, .npz or "
            ".csv.",
        ),
    ] = None,
    reject: RejectOption = None,
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
    models, inputs = separate_images(paths, lists)
    check_models(models, prior)
    views, rules = parse_tta(tta), parse_reject(reject)
    reporter = build_console_reporter(json_output=as_json or (output is None and shards is None))
    with import_without_collection():
        from finetune.commands.predict import predicted_files
    from finetune.commands.predict.predict_options import PredictOptions

    options = PredictOptions(
        top_k, all_probabilities, parse_device(device), batch_size, views, image_size, weights,
        temperature, prior, column, rules, embeddings,
    )  # fmt: skip
    if shards is not None:
        check_shard_options(
            {
                "--output": output,
                "--output-format": output_format,
                "--embeddings": embeddings,
                "--saliency": saliency,
            }
        )
        _predict_shards(models, inputs, shards, lists, options, part_size, reporter)
        return
    check_single_process(part_size)
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
        print_text=_print_rows if prints else None,
        saliency=saliency,
        reporter=reporter,
    )
    if as_json:
        print_json(summary.to_json())
    _note_summary(summary, options.prior is not None, reporter)


def _print_rows(text: str) -> None:
    """Print rows at once; end the command when the reader of a pipe has seen enough.

    Raises:
        StorageError: Standard output is a file on a full disk.
        typer.Exit: Nobody reads standard output any more.
    """
    print_text(text)
    failure = output_streams.get_failure(1)  # writes what is buffered
    if failure is not None and output_streams.is_closed_pipe(failure):
        raise typer.Exit


def _predict_shards(
    models: Sequence[Path],
    inputs: Sequence[Path],
    folder: Path,
    lists: Sequence[Path],
    options: "PredictOptions",
    part_size: int | None,
    reporter: "ConsoleReporter",
) -> None:
    from finetune.commands.predict.shards.sharded_prediction import predict_shards

    with exit_on_stop_request(), signals.allow_interrupts():
        result = predict_shards(
            models, inputs, folder, lists=lists, options=options, part_size=part_size,
            reporter=reporter,
        )  # fmt: skip
    if reporter.json_output:
        print_json(result.to_json())
    else:
        reporter.note(result.describe())
        for line in result.notes:
            reporter.note(line)


def separate_images(paths: Sequence[Path], lists: Sequence[Path]) -> tuple[list[Path], list[Path]]:
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
    for line in summary.notes:
        reporter.note(line)
    if is_adjusted:
        reporter.note(f"Class prior: {summary.prior['target_prior']}")
