"""Micro-batches: images of many requests pass through the network together."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

_Job = tuple[Future[Output], Input]


class Batcher(Generic[Input, Output]):
    """Thread that computes batches; they form while it is busy with the one before.

    Args:
        compute: Function from a batch to its results, in the same order; called in one thread.
        batch_size: Most inputs of a batch.
        max_wait_seconds: Time from the first input of a batch that an idle thread waits for more.
        on_batch: Callback after each batch, with its number of inputs and seconds.
    """

    def __init__(
        self,
        compute: Callable[[list[Input]], Sequence[Output]],
        *,
        batch_size: int,
        max_wait_seconds: float = 0.0,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._compute = compute
        self._batch_size = batch_size
        self._max_wait_seconds = max_wait_seconds
        self._on_batch = on_batch
        self._jobs: queue.SimpleQueue[_Job[Output, Input] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Compute what was submitted, and end the thread."""
        self._jobs.put(None)
        self._thread.join(timeout_seconds)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, item: Input) -> Future[Output]:
        """Return the future result of an input; a future that is cancelled is not computed."""
        future: Future[Output] = Future()
        self._jobs.put((future, item))
        return future

    def _run(self) -> None:
        is_open = True
        while is_open:
            jobs, is_open = self._collect()
            started = [job for job in jobs if job[0].set_running_or_notify_cancel()]
            if started:
                self._finish(started)

    def _collect(self) -> tuple[list[_Job[Output, Input]], bool]:
        """Return the next batch, after waiting for its first input, and whether more may come."""
        first = self._jobs.get()
        if first is None:
            return [], False
        jobs = [first]
        deadline = time.monotonic() + self._max_wait_seconds
        while len(jobs) < self._batch_size:
            try:
                left = deadline - time.monotonic()
                job = self._jobs.get(timeout=left) if left > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _finish(self, jobs: list[_Job[Output, Input]]) -> None:
        """Compute a batch; one that fails, as for lack of memory, is halved until it does not."""
        start = time.monotonic()
        try:
            results = self._compute([item for _, item in jobs])
        except Exception as error:  # the thread has to go on for other requests
            if len(jobs) == 1:
                jobs[0][0].set_exception(error)
                return
            middle = len(jobs) // 2
            self._finish(jobs[:middle])
            self._finish(jobs[middle:])
            return
        if self._on_batch is not None:
            self._on_batch(len(jobs), time.monotonic() - start)
        for (future, _), result in zip(jobs, results, strict=True):
            future.set_result(result)
