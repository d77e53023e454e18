"""Reporter of work on several models or runs, which have messages in common."""

from finetune.types import Reporter


class DistinctMessageReporter(Reporter):
    """Reporter that shows each note and each warning once.

    Args:
        reporter: Receiver of what remains.
        warnings_only: Whether nothing but warnings is shown.
    """

    def __init__(self, reporter: Reporter, *, warnings_only: bool = False) -> None:
        self._reporter = reporter
        self._other = Reporter() if warnings_only else reporter
        self._seen: set[str] = set()

    def note(self, message: str) -> None:
        """Show a message once."""
        if message not in self._seen:
            self._seen.add(message)
            self._other.note(message)

    def warn(self, message: str) -> None:
        """Show a warning once."""
        if message not in self._seen:
            self._seen.add(message)
            self._reporter.warn(message)

    def start(self, task: str, total: int) -> None:
        """Start a progress bar."""
        self._other.start(task, total)

    def advance(self, steps: int = 1) -> None:
        """Advance the progress bar."""
        self._other.advance(steps)

    def finish(self) -> None:
        """Close the progress bar."""
        self._other.finish()
