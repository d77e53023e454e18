"""From uploads to probabilities: decoding in threads, then the network in micro-batches."""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from finetune.errors import DataError
from finetune.server.batching.batcher import Batcher
from finetune.server.intake.limits import ServerLimits
from finetune.server.intake.rejection import RejectionError, reject_image
from finetune.server.served_model import ServedModel, Upload
from finetune.server.server_metrics import ServerMetrics
from finetune.units import format_count

Result = list[float] | RejectionError
"""Probabilities of an image, shape (K,), or why it is rejected."""

_SMOOTHING = 0.1
"""Weight of the last batch in the mean time of an image."""


class PredictionPipeline:
    """Queue, decoding threads and network of a server; called by the event loop.

    Args:
        model: Model.
        limits: Limits of the server.
        metrics: Receives times and sizes.
        seconds_per_image: Time of the network for an image, for the first estimates of waiting.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        limits: ServerLimits,
        metrics: ServerMetrics,
        seconds_per_image: float = 0.05,
    ) -> None:
        self._model = model
        self._limits = limits
        self._metrics = metrics
        self._seconds_per_image = seconds_per_image
        self._num_admitted = 0
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._batcher: Batcher[Any, list[float]] = Batcher(
            model.compute,
            batch_size=limits.batch_size,
            max_wait_seconds=limits.max_wait_seconds,
            on_batch=self._observe_batch,
        )

    def start(self) -> None:
        """Start the thread of the network."""
        self._batcher.start()

    def stop(self) -> None:
        """End the threads, after the images that were decoded."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._batcher.stop(self._limits.timeout_seconds)

    @property
    def is_alive(self) -> bool:
        """Whether the network answers."""
        return self._batcher.is_alive

    def check_room(self, num_images: int = 1) -> None:
        """Check that the queue takes images.

        Raises:
            RejectionError: It is full.
        """
        if self._num_admitted + num_images > self._limits.queue_size:
            raise RejectionError(
                429,
                "queue_full",
                f"{format_count(self._num_admitted, 'image')} of at most "
                f"{self._limits.queue_size} are in progress. Try again later.",
                retry_seconds=self._num_admitted * self._seconds_per_image,
            )

    async def predict(
        self, uploads: Sequence[Upload], *, disconnected: asyncio.Future[Any]
    ) -> list[Result]:
        """Return the result of each upload.

        Args:
            uploads: Images, no more than the queue takes.
            disconnected: Is done when the client is gone.

        Raises:
            RejectionError: The queue is full, the time is over, the network failed, or the client
                is gone.
        """
        self.check_room(len(uploads))
        self._count(len(uploads))
        tasks = [self._start(upload) for upload in uploads]
        everything = asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.wait(
                (everything, disconnected),
                timeout=self._limits.timeout_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if everything.done():
                return [_check_result(result) for result in everything.result()]
        finally:
            everything.cancel()
        if disconnected.done():
            raise RejectionError(400, "disconnected", "The client ended the request.")
        raise RejectionError(
            503,
            "timeout",
            f"The answer took longer than {self._limits.timeout_seconds:g} s. Try again later.",
            retry_seconds=self._num_admitted * self._seconds_per_image,
        )

    def _start(self, upload: Upload) -> asyncio.Task[Result]:
        decoding = self._pool.submit(self._decode, upload)
        task = asyncio.create_task(self._finish(decoding, upload))
        task.add_done_callback(partial(self._leave, decoding, asyncio.get_running_loop()))
        return task

    def _decode(self, upload: Upload) -> Any:
        start = time.monotonic()
        decoded = self._model.decode(upload)
        self._metrics.decode_seconds.observe(time.monotonic() - start)
        return decoded

    async def _finish(self, decoding: Future[Any], upload: Upload) -> Result:
        try:
            decoded = await asyncio.wrap_future(decoding)
        except DataError as error:
            return reject_image(error, upload.content, max_pixels=self._limits.max_pixels)
        return await asyncio.wrap_future(self._batcher.submit(decoded))

    def _leave(
        self, decoding: Future[Any], loop: asyncio.AbstractEventLoop, task: asyncio.Task[Result]
    ) -> None:
        """Give back the place of an image, as soon as no thread works on it."""
        del task
        if decoding.cancel() or decoding.done():
            self._count(-1)
            return
        decoding.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count, -1))

    def _count(self, change: int) -> None:
        self._num_admitted += change
        self._metrics.queue_images.set(self._num_admitted)

    def _observe_batch(self, num_images: int, seconds: float) -> None:
        self._metrics.observe_batch(num_images, seconds)
        last = seconds / num_images
        self._seconds_per_image += _SMOOTHING * (last - self._seconds_per_image)


def _check_result(result: Result | BaseException) -> Result:
    """Return a result.

    Raises:
        RejectionError: It is an error of the network.
    """
    if isinstance(result, RejectionError) or not isinstance(result, BaseException):
        return result
    raise RejectionError(
        500, "internal_error", f"The network failed: {type(result).__name__}."
    ) from result
