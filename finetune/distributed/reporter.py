"""A reporter that looks after the other processes while this one works."""

from collections.abc import Mapping
from typing import Any

from finetune.distributed.rendezvous import Rendezvous
from finetune.types import Reporter


class PeerCheckingReporter(Reporter):
    """Passes everything on, and ends the work when another process of the run is gone.

    Scanning and decoding take from seconds to hours, and tell a reporter of each image.

    Args:
        reporter: Told of everything.
        rendezvous: The processes of the run.
    """

    def __init__(self, reporter: Reporter, rendezvous: Rendezvous) -> None:
        self.reporter = reporter
        self.rendezvous = rendezvous

    def note(self, message: str) -> None:
        """Pass it on."""
        self.reporter.note(message)

    def warn(self, message: str) -> None:
        """Pass it on."""
        self.reporter.warn(message)

    def show_plan(self, plan: Mapping[str, Any]) -> None:
        """Pass it on."""
        self.reporter.show_plan(plan)

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
        self.rendezvous.check_peers()

    def finish(self) -> None:
        """Pass it on."""
        self.reporter.finish()

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Pass it on."""
        self.reporter.show_probe(result)

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Pass it on."""
        self.reporter.show_epoch(row)
