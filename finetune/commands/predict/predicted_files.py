"""Predictions of images that are written to a file or printed as they come."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from finetune.commands.predict.output_conflicts import check_distinct_outputs
from finetune.commands.predict.predict_options import PredictOptions
from finetune.commands.predict.predict_result import PredictResult, PredictSummary
from finetune.commands.predict.prediction_job import PredictionJob
from finetune.commands.predict.prediction_row import PredictionRow, RowFormat
from finetune.commands.predict.row_writers import (
    OutputFormat,
    RowWriter,
    TextWriter,
    choose_format,
    open_writer,
)
from finetune.commands.predict.saliency_inputs import SaliencyInputs, check_files_replaced
from finetune.commands.saliency.overlays import check_overlay_folder, write_overlays
from finetune.errors import RunFolderError
from finetune.inference.prediction_stream import PredictedBatch
from finetune.types import Prediction, RejectedFile, Reporter


def collect_predictions(
    models: Sequence[Path],
    inputs: Sequence[Path],
    *,
    lists: Sequence[Path] = (),
    options: PredictOptions,
    output: Path | None = None,
    output_format: str | None = None,
    print_text: Callable[[str], Any] | None = None,
    saliency: Path | None = None,
    reporter: Reporter,
) -> PredictResult:
    """Predict images, and return the predictions of all; see ``write_predictions``.

    Raises:
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    predictions: list[Prediction] = []
    rejected: list[RejectedFile] = []
    form = RowFormat(())

    def keep(rows: Sequence[PredictionRow], row_format: RowFormat) -> None:
        nonlocal form
        form = row_format
        for row in rows:
            if row.reason is None:
                predictions.append(row.to_prediction(keeps_all=row_format.keeps_all))
            else:
                rejected.append(RejectedFile(row.name, row.reason))

    summary = write_predictions(
        models,
        inputs,
        lists=lists,
        options=options,
        output=output,
        output_format=output_format,
        print_text=print_text,
        on_rows=keep,
        saliency=saliency,
        reporter=reporter,
    )
    values = {entry.name: getattr(summary, entry.name) for entry in fields(summary)}
    return PredictResult(
        **values, predictions=tuple(predictions), rejected=tuple(rejected), form=form
    )


def write_predictions(
    models: Sequence[Path],
    inputs: Sequence[Path],
    *,
    lists: Sequence[Path] = (),
    options: PredictOptions,
    output: Path | None = None,
    output_format: str | None = None,
    print_text: Callable[[str], Any] | None = None,
    on_rows: Callable[[Sequence[PredictionRow], RowFormat], None] | None = None,
    saliency: Path | None = None,
    reporter: Reporter,
) -> PredictSummary:
    """Predict images, and write the rows as they come.

    Args:
        models: Models, whose probabilities are averaged.
        inputs: Images, see ``open_stream``.
        lists: Text files that list images.
        options: Settings of the prediction.
        output: File to write, atomically; None for none.
        output_format: "csv", "jsonl" or "parquet"; None for that of the suffix of ``output``.
        print_text: Function that prints the rows; None for no print.
        on_rows: Function that receives rows and their form.
        saliency: Folder for saliency maps, which are drawn when ``output`` is complete; None for
            none.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    chosen = _check_outputs(output, output_format, options.embeddings)
    if saliency is not None:
        check_overlay_folder(saliency)
    job = PredictionJob(
        models, inputs, lists=lists, options=options, output=output, reporter=reporter
    )
    if chosen != "jsonl" and (output is not None or print_text is not None):
        job.form.list_columns()  # whose names may not be distinct
    if saliency is None:
        _write_rows(job, output, chosen, print_text=print_text, on_rows=on_rows)
        return replace(summarise_job(job), output=output)
    root = (*inputs, *lists)[0]
    check_files_replaced(job.stream, saliency, root=root)
    with tempfile.TemporaryDirectory() as folder:
        pictured = SaliencyInputs(Path(folder))
        _write_rows(
            job, output, chosen, print_text=print_text, on_rows=on_rows, on_batch=pictured.add
        )
        overlays = write_overlays(
            job.bundle,
            pictured.images,
            saliency,
            root=root,
            device=job.predictor.device,
            reporter=reporter,
        )
    return replace(summarise_job(job), output=output, saliency=overlays)


def _write_rows(
    job: PredictionJob,
    output: Path | None,
    output_format: OutputFormat,
    *,
    print_text: Callable[[str], Any] | None,
    on_rows: Callable[[Sequence[PredictionRow], RowFormat], None] | None,
    on_batch: Callable[[PredictedBatch], None] | None = None,
) -> None:
    """Predict the images of a job; the file of the rows is complete on return.

    Raises:
        FinetuneError: No image can be read, or the file cannot be written.
    """
    with ExitStack() as stack:
        writers: list[RowWriter] = []
        if print_text is not None:
            writers.append(_DeferredWriter(lambda: TextWriter(job.form, output_format, print_text)))
        if output is not None:
            writers.append(stack.enter_context(open_writer(output, job.form, output_format)))
        for rows in job.iterate(on_batch=on_batch):
            for writer in writers:
                writer.write(rows)
            if on_rows is not None:
                on_rows(rows, job.form)


def _check_outputs(
    output: Path | None, output_format: str | None, embeddings: Path | None
) -> OutputFormat:
    """Return the format of the rows, and check the paths of files as far as they tell.

    Raises:
        ConfigError: The format is unknown, or one file has two contents.
        RunFolderError: The path of a file is that of a folder or device.
    """
    if output is not None and output.is_dir():
        raise RunFolderError(
            f"--output {output} is a folder. Give the path of a .csv, .jsonl or .parquet file; a "
            f"folder of Parquet files is written with --shards."
        )
    if output is not None and (_is_device(output) or (output.exists() and not output.is_file())):
        raise RunFolderError(
            f"--output {output} is a device or a pipe, which a file would replace. Leave --output "
            f"out: the predictions are then printed."
        )
    check_distinct_outputs({"--output": output, "--embeddings": embeddings})
    return choose_format(output, output_format)


def _is_device(path: Path) -> bool:
    """Return whether a path lies among the devices; /dev/stdout may be a link to a file."""
    return path.absolute().is_relative_to("/dev") and not path.absolute().is_relative_to("/dev/shm")


def summarise_job(job: PredictionJob) -> PredictSummary:
    """Return the numbers and settings of a prediction whose images were read."""
    return PredictSummary(
        job.num_predicted,
        job.tally.count,
        tta=job.predictor.tta,
        prior=job.prior_json,
        members=job.members,
        image_size=job.options.image_size,
        temperature=job.options.temperature,
        features=None if job.features is None else job.features.to_json(),
        notes=() if job.features is None else tuple(job.features.describe(job.num_predicted)),
    )


class _DeferredWriter:
    """Writer that is opened with the first rows, so that nothing is printed before an error."""

    def __init__(self, open_now: Callable[[], RowWriter]) -> None:
        self._open = open_now
        self._writer: RowWriter | None = None

    def write(self, rows: Sequence[PredictionRow]) -> None:
        """Write rows."""
        self._writer = self._writer or self._open()
        self._writer.write(rows)

    def close(self) -> None:
        """Write what is left."""
