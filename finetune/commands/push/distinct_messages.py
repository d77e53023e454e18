"""Reporter of several exports of one model, which have messages in common."""

from finetune.types import Reporter


class DistinctMessageReporter(Reporter):
    """Reporter that shows each note and each warning once.

    Args:
        reporter: Receiver of what remains.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._seen: set[str] = set()

    def note(self, message: str) -> None:
        """Show a message once."""
        if message not in self._seen:
            self._seen.add(message)
            self._reporter.note(message)

    def warn(self, message: str) -> None:
        """Show a warning once."""
        if message not in self._seen:
            self._seen.add(message)
            self._reporter.warn(message)

    def start(self, task: str, total: int) -> None:
        """Start a progress bar."""
        self._reporter.start(task, total)

    def advance(self, steps: int = 1) -> None:
        """Advance the progress bar."""
        self._reporter.advance(steps)

    def finish(self) -> None:
        """Close the progress bar."""
        self._reporter.finish()
