"""Limits of a server: what a client may send, and how much work may wait."""

from dataclasses import dataclass

from finetune.errors import ConfigError
from finetune.units import format_count

DEFAULT_MAX_BYTES = 32_000_000
DEFAULT_MAX_PIXELS = 64_000_000
DEFAULT_MAX_FILES = 32
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_QUEUE_SIZE = 64
DEFAULT_BATCH_SIZE = 8

MAX_HEADER_SECONDS = 10.0
"""Longest time in which the headers of a request have to arrive."""

_BODIES_IN_MEMORY = 8
"""Largest bodies that fit into memory together; what comes in excess of them is rejected."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of a server.

    Attributes:
        max_bytes: Bytes of the body of a request, with all of its files.
        max_pixels: Pixels of an image, by its header.
        max_files: Images of a request.
        timeout_seconds: Time to receive a request, and again to answer it.
        queue_size: Images that may be decoded, wait or be computed at once.
        batch_size: Images that pass through the network together.
        max_wait_seconds: Time that an idle network waits for a batch to fill.
    """

    max_bytes: int = DEFAULT_MAX_BYTES
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_files: int = DEFAULT_MAX_FILES
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    queue_size: int = DEFAULT_QUEUE_SIZE
    batch_size: int = DEFAULT_BATCH_SIZE
    max_wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check that the limits agree.

        Raises:
            ConfigError: The queue is shorter than a batch.
        """
        if self.queue_size < self.batch_size:
            raise ConfigError(
                f"--queue {self.queue_size}: a batch of {format_count(self.batch_size, 'image')} "
                f"(--batch-size) would never fill. Allow at least as many in the queue."
            )

    @property
    def max_request_files(self) -> int:
        """Images of a request, no more than the queue takes."""
        return min(self.max_files, self.queue_size)

    @property
    def header_seconds(self) -> float:
        """Time in which the headers of a request have to arrive."""
        return min(MAX_HEADER_SECONDS, self.timeout_seconds)

    @property
    def max_total_bytes(self) -> int:
        """Bytes of the bodies of all requests together."""
        return _BODIES_IN_MEMORY * self.max_bytes

    def to_json(self) -> dict[str, float]:
        """Return what a client has to know."""
        return {
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "max_files": self.max_request_files,
            "timeout_seconds": self.timeout_seconds,
        }
