"""Training images per second in an epoch."""

import time
from collections.abc import Callable


class TrainClock:
    """Clock of the training steps of an epoch, without its validation.

    Args:
        clock: Function that returns the present time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start: float | None = None
        self._num_images = 0
        self._images_per_second: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Images of all ranks per second; None before the end, or if no step was timed."""
        return self._images_per_second

    def start(self) -> None:
        """Begin an epoch, or the part of it that follows a resume."""
        self._start, self._num_images, self._images_per_second = self._clock(), 0, None

    def add(self, num_images: int) -> None:
        """Count the images of a batch on all ranks."""
        self._num_images += num_images

    def stop(self) -> None:
        """End the training steps of the epoch."""
        if self._start is not None and self._num_images:
            seconds = max(self._clock() - self._start, 1e-9)
            self._images_per_second = self._num_images / seconds
        self._start = None
