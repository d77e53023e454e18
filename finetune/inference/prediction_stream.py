"""Predictions of a stream of images, of which few are in memory at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from finetune.data.images.decode import OnValues
from finetune.data.streams.stream_image import StreamImage, StreamSource
from finetune.errors import DataError
from finetune.inference.predictor import Predictor
from finetune.system.host import count_available_cores

ComputeExtra = Callable[[Sequence[Tensor], Tensor], Mapping[str, Sequence[Any]]]
"""Function from the views of a batch and its logits, as ``Predictor.compute_logits`` takes and
returns them, to further values of each image by their names."""


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """Consecutive images of a stream with their probabilities (B images, R of them readable).

    Attributes:
        images: Images, shape (B,).
        reasons: Reasons of those that could not be read, by their rows.
        rows: Rows of the readable ones, shape (R,).
        probabilities: Class probabilities, shape (R, K).
        extra: Further values by their names, shape (R,) each.
    """

    images: Sequence[StreamImage]
    reasons: Mapping[int, str]
    rows: Sequence[int]
    probabilities: Tensor
    extra: Mapping[str, Sequence[Any]]


def predict_stream(
    predictor: Predictor,
    images: Iterable[StreamImage],
    *,
    compute_extra: ComputeExtra | None = None,
    on_values: OnValues | None = None,
    num_threads: int | None = None,
) -> Iterator[PredictedBatch]:
    """Yield the probabilities of images in batches, in the order of the stream.

    Threads decode the images of the next batches while the network computes; decoders work outside
    of Python's lock. An image that cannot be read is reported in its batch, and stops nothing.

    Args:
        predictor: Predictor, whose batch size is that of the batches.
        images: Images.
        compute_extra: Function that computes further values.
        on_values: See ``OnValues``.
        num_threads: Number of threads that decode images; None for that of the cores.
    """
    num_threads = num_threads or count_available_cores()
    num_ahead = max(2, -(-2 * num_threads // predictor.batch_size))
    pending: deque[_Batch] = deque()
    remaining = iter(images)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        while chunk := list(islice(remaining, predictor.batch_size)):
            source = StreamSource(chunk, on_values=on_values)
            loads = [pool.submit(_load, predictor, source, row) for row in range(len(chunk))]
            pending.append(_Batch(chunk, loads))
            if len(pending) > num_ahead:
                yield _compute(predictor, pending.popleft(), compute_extra)
        while pending:
            yield _compute(predictor, pending.popleft(), compute_extra)
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Images of a batch, and the views that threads make of them or the reasons for none."""

    images: Sequence[StreamImage]
    loads: Sequence[Future[list[Tensor] | str]]


def _load(predictor: Predictor, source: StreamSource, row: int) -> list[Tensor] | str:
    try:
        return predictor.load_views(source, row)
    except DataError as error:
        return str(error)


def _compute(
    predictor: Predictor, batch: _Batch, compute_extra: ComputeExtra | None
) -> PredictedBatch:
    reasons: dict[int, str] = {}
    rows: list[int] = []
    views: list[list[Tensor]] = []
    for row, load in enumerate(batch.loads):
        loaded = load.result()
        if isinstance(loaded, str):
            reasons[row] = loaded
        else:
            rows.append(row)
            views.append(loaded)
    if not rows:
        empty = torch.empty(0, len(predictor.card.classes))
        return PredictedBatch(batch.images, reasons, rows, empty, {})
    stacked = [torch.stack(same) for same in zip(*views, strict=True)]
    logits = predictor.compute_logits(stacked)
    extra = {} if compute_extra is None else compute_extra(stacked, logits)
    probabilities = predictor.compute_probabilities(logits)
    return PredictedBatch(batch.images, reasons, rows, probabilities, extra)
