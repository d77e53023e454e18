"""Model and images of a prediction, prepared; its rows, and what became of all images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune.bundle.bundle import ModelBundle
from finetune.commands.ensembles.combined_model import list_members, load_models
from finetune.commands.predict.embedding_writers import check_embedding_path
from finetune.commands.predict.feature_outputs import create_feature_outputs
from finetune.commands.predict.output_conflicts import OutputGuard
from finetune.commands.predict.predict_options import (
    PredictOptions,
    build_row_format,
    check_card_options,
    check_options,
)
from finetune.commands.predict.prediction_row import PredictionRow, build_rows
from finetune.commands.rejected_files import RangeCheck, RejectionTally
from finetune.commands.run_images import read_column_options
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.data.layouts.table_options import TableOptions
from finetune.data.streams.file_streams import FileStream
from finetune.data.streams.open_stream import describe_other_files, open_stream
from finetune.data.streams.stream_image import StreamImage
from finetune.errors import DataError
from finetune.evaluation.prior_file import PRIOR_NAMES
from finetune.inference.input_checks import check_views, describe_far_size, resize_input
from finetune.inference.prediction_stream import PredictedBatch, predict_stream
from finetune.inference.predictor import Predictor
from finetune.inference.tta import parse_tta
from finetune.system.hardware import prepare_accelerator
from finetune.system.host import count_available_cores
from finetune.types import RejectedFile, Reporter
from finetune.units import format_count

_MAX_HELD = 10_000
"""Rows of unreadable images that are held back until a readable one comes."""


class PredictionJob:
    """Model and images of a prediction.

    Args:
        models: Run folders, bundle folders, checkpoints or exported models.
        inputs: Images, see ``open_stream``.
        lists: Text files that list images.
        options: Settings.
        output: File that the rows are written to, which is none of the inputs; None for none.
        local_rank: Number of this process on its node, which chooses one of several GPUs.
        local_processes: Number of processes on its node, which share the cores.
        reporter: Receiver of progress and notes.

    Attributes:
        bundle: Model.
        predictor: Predictor of it.
        stream: Images.
        form: Form of the rows.
        features: Outputs that need the features of the images; None for none.
        tally: Images without a prediction so far.
        num_predicted: Number of images with one so far.

    Raises:
        FinetuneError: Invalid options, model or images; the message names the remedy.
    """

    def __init__(
        self,
        models: Sequence[Path],
        inputs: Sequence[Path],
        *,
        lists: Sequence[Path] = (),
        options: PredictOptions,
        output: Path | None = None,
        local_rank: int = 0,
        local_processes: int = 1,
        reporter: Reporter,
    ) -> None:
        self.models = models
        self.options = options
        self.reporter = reporter
        accelerator = prepare_accelerator(options.device, setting="--device")
        if accelerator == "cuda" and torch.cuda.device_count() > 1:
            accelerator = f"cuda:{local_rank % torch.cuda.device_count()}"
        tta = parse_tta(options.tta)
        check_options(options, num_models=len(models))
        if options.embeddings is not None:
            check_embedding_path(options.embeddings)
        bundle = load_models(
            models,
            weights=options.weights,
            device=accelerator,
            batch_size=options.batch_size,
            reporter=reporter,
        )
        for member in bundle.members or (bundle,):
            check_card_options(options, member.card, source=member.source)
        if (note := describe_far_size(bundle, options.image_size)) is not None:
            reporter.note(note)
        bundle = resize_input(apply_prior(bundle, options.prior, reporter), options.image_size)
        self.bundle = _set_temperature(bundle, options.temperature)
        check_views(self.bundle, tta)
        card = self.bundle.card
        self.stream = open_stream(
            inputs, lists=lists, tables=_choose_columns(models, options.column)
        )
        self._guard = OutputGuard({"--output": output, "--embeddings": options.embeddings})
        prior_file = [] if options.prior in (None, *PRIOR_NAMES) else [Path(options.prior)]
        self._guard.check_inputs(self.stream, [*models, *prior_file])
        self.predictor = Predictor(
            self.bundle, device=accelerator, batch_size=options.batch_size, tta=tta
        )
        self.features = create_feature_outputs(
            self.predictor,
            self.bundle,
            models,
            reject=options.reject,
            embeddings=options.embeddings,
            reporter=reporter,
        )
        columns = () if self.features is None else self.features.columns
        self.form = build_row_format(options, card, extra=columns)
        self.tally = RejectionTally()
        self.num_predicted = 0
        self._num_threads = max(1, count_available_cores() // local_processes)

    @property
    def prior_json(self) -> dict[str, Any]:
        """Description of the class prior that the probabilities assume."""
        return prior_to_json(self.bundle.card, requested=self.options.prior)

    @property
    def members(self) -> tuple[tuple[str, float], ...]:
        """Path and weight of each member of an ensemble; empty for one model."""
        return list_members(self.bundle, self.models)

    def iterate(
        self,
        images: Iterable[StreamImage] | None = None,
        *,
        total: int | None = None,
        on_batch: Callable[[PredictedBatch], None] | None = None,
    ) -> Iterator[list[PredictionRow]]:
        """Yield the rows of the images in lists, in their order; at the end, warn of unread ones.

        Args:
            images: Some of the images of the stream; None for all, of which one must be readable.
            total: Number of these images, 0 if it is unknown; None for all.
            on_batch: Function that receives each batch before its rows are yielded.

        Raises:
            DataError: No image can be read.
        """
        with nullcontext() if self.features is None else self.features.open():
            yield from self._iterate(images, total, on_batch)

    def _iterate(
        self,
        images: Iterable[StreamImage] | None,
        total: int | None,
        on_batch: Callable[[PredictedBatch], None] | None,
    ) -> Iterator[list[PredictionRow]]:
        values = RangeCheck(self.bundle.card.read_options.pixel_range)
        batches = predict_stream(
            self.predictor,
            self._guard.check_images(self.stream.iterate() if images is None else images),
            compute_extra=None if self.features is None else self.features.compute,
            on_values=values.add,
            num_threads=self._num_threads,
        )  # fmt: skip
        held: list[PredictionRow] = []
        self.reporter.start("predicting", (self.stream.count() or 0) if total is None else total)
        for batch in batches:
            if on_batch is not None:
                on_batch(batch)
            if self.features is not None:
                self.features.write_embeddings(batch)
            rows = list(build_rows(batch, self.bundle.card, self.form))
            self.num_predicted += len(batch.rows)
            for row in batch.reasons:
                self.tally.add(RejectedFile(batch.images[row].name, batch.reasons[row]))
            held += rows
            self.reporter.advance(len(rows))
            # where no image can be read, there is an error and no output
            if self.num_predicted or images is not None or len(held) > _MAX_HELD:
                yield held
                held = []
        self.reporter.finish()
        if not self.num_predicted and images is None:
            self._raise_unreadable(held)
        if (others := describe_other_files(self.stream)) is not None:
            self.reporter.note(others)
        values.report(self.reporter)
        if self.tally.count:
            self.reporter.warn(
                f"{format_count(self.tally.count, 'file')} without prediction: "
                f"{self.tally.summarise()}"
            )
        self.tally.propose_heic(self.reporter)

    def _raise_unreadable(self, held: Sequence[PredictionRow]) -> None:
        self.tally.propose_heic(self.reporter)
        stream = self.stream
        if isinstance(stream, FileStream) and len(stream.files) == 1:
            raise DataError(f"{stream.description} cannot be read: {held[0].reason}.")
        raise DataError(f"No readable image in {stream.description}: {self.tally.summarise()}.")


def _set_temperature(bundle: ModelBundle, temperature: float | None) -> ModelBundle:
    """Return a model whose logits are divided by another temperature; None keeps its own."""
    if temperature is None:
        return bundle
    members = tuple(_set_temperature(member, temperature) for member in bundle.members)
    card = replace(bundle.card, temperature=temperature)
    return replace(bundle, card=card, members=members)


def _choose_columns(models: Sequence[Path], column: str | None) -> TableOptions:
    if column is not None:
        return TableOptions(image_column=column)
    return read_column_options(models)
