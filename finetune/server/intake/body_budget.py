"""Memory that the bodies of all requests use together."""

from finetune.server.intake.rejection import RejectionError

_RETRY_SECONDS = 2.0


class BodyBudget:
    """Bytes of the bodies of all requests; used in the thread of the event loop alone.

    Args:
        max_bytes: Bytes above which a request is rejected.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count bytes that were received.

        Raises:
            RejectionError: Other requests use the memory.
        """
        if self._used_bytes + num_bytes > self._max_bytes:
            raise RejectionError(
                429,
                "memory_full",
                f"Requests with {self._max_bytes / 1e6:.0f} MB are in progress, the most that the "
                f"server holds at once. Try again later.",
                retry_seconds=_RETRY_SECONDS,
            )
        self._used_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Count bytes that are no longer held."""
        self._used_bytes -= num_bytes
