"""A reporter that looks after the other processes while this one works."""

from collections.abc import Mapping
from typing import Any

from finetune.distributed.rendezvous import Meeting
from finetune.types import Reporter


class Watchful(Reporter):
    """Passes everything on, and ends the work when another process of the run is gone.

    Scanning and decoding take from seconds to hours, and tell a reporter of each image.

    Args:
        reporter: Told of everything.
        met: The processes of the run.
    """

    def __init__(self, reporter: Reporter, met: Meeting) -> None:
        self.reporter = reporter
        self.met = met

    def note(self, message: str) -> None:
        """Pass it on."""
        self.reporter.note(message)

    def warn(self, message: str) -> None:
        """Pass it on."""
        self.reporter.warn(message)

    def plan(self, plan: Mapping[str, Any]) -> None:
        """Pass it on."""
        self.reporter.plan(plan)

    def start(self, task: str, total: int) -> None:
        """Pass it on."""
        self.reporter.start(task, total)

    def advance(self, steps: int = 1) -> None:
        """Pass it on, and look after the others.

        Raises:
            TrainingError: One of them is lost, or failed.
            StopRequest: One was asked to stop.
        """
        self.reporter.advance(steps)
        self.met.look()

    def finish(self) -> None:
        """Pass it on."""
        self.reporter.finish()

    def probe(self, found: Mapping[str, Any]) -> None:
        """Pass it on."""
        self.reporter.probe(found)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Pass it on."""
        self.reporter.epoch(row)
