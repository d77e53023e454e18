"""Saliency pictures for clients: one is drawn at a time, and the others wait for their turn."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from finetune.errors import DataError
from finetune.server.intake.limits import ServerLimits
from finetune.server.intake.rejection import RejectionError, reject_image
from finetune.server.served_model import SaliencyPicture, ServedModel, Upload

_RETRY_SECONDS = 2


class SaliencyWorker:
    """Thread that draws saliency pictures; called by the event loop.

    Args:
        model: Model.
        limits: Limits of the server; the queue is that of predictions, and its own.
    """

    def __init__(self, model: ServedModel, *, limits: ServerLimits) -> None:
        self._model = model
        self._limits = limits
        self._num_waiting = 0
        self._turn = asyncio.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saliency")

    def stop(self) -> None:
        """End the thread, after the picture that it draws."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check_room(self) -> None:
        """Check that another image may wait.

        Raises:
            RejectionError: Too many wait.
        """
        if self._num_waiting >= self._limits.queue_size:
            raise self._build_busy_rejection()

    async def draw(self, upload: Upload, *, disconnected: asyncio.Future[Any]) -> SaliencyPicture:
        """Return the picture of an image that was received.

        Args:
            upload: Image.
            disconnected: Is done when the client is gone.

        Raises:
            RejectionError: The image cannot be read, its turn did not come in time, the picture
                takes too long, or the client is gone.
        """
        self.check_room()
        began = asyncio.Event()
        task = asyncio.create_task(self._draw_in_turn(upload, began))
        self._num_waiting += 1
        try:
            await asyncio.wait(
                (task, disconnected),
                timeout=self._limits.timeout_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                return task.result()
        except DataError as error:
            raise reject_image(error, upload.content, max_pixels=self._limits.max_pixels) from error
        finally:
            self._num_waiting -= 1
            task.cancel()
        if disconnected.done():
            raise RejectionError(400, "disconnected", "The client ended the request.")
        if not began.is_set():
            raise self._build_busy_rejection()
        raise RejectionError(
            503,
            "timeout",
            f"The picture took longer than {self._limits.timeout_seconds:g} s.",
            retry_seconds=_RETRY_SECONDS,
        )

    async def _draw_in_turn(self, upload: Upload, began: asyncio.Event) -> SaliencyPicture:
        await self._turn.acquire()
        began.set()
        loop = asyncio.get_running_loop()
        drawing = loop.run_in_executor(self._pool, self._model.draw_saliency, upload)
        # the turn lasts as long as the thread works, also when nobody waits for the picture
        drawing.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(drawing)

    def _build_busy_rejection(self) -> RejectionError:
        return RejectionError(
            429,
            "saliency_busy",
            "Pictures for others are being drawn. Try again later.",
            retry_seconds=_RETRY_SECONDS,
        )
