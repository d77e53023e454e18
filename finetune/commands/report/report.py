"""Command that writes the report of one run, or of several side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finetune
from finetune.commands.report.collect import read_facts
from finetune.errors import StorageError
from finetune.report.page import render_report
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, StrPath

COMPARISON_NAME = "comparison.html"
"""Default name of the page of several runs, in the working folder."""


@dataclass(frozen=True, slots=True)
class ReportResult:
    """Page that was written.

    Attributes:
        output: Path of the page.
        num_bytes: Its size.
        runs: Paths of the runs on it.
    """

    output: Path
    num_bytes: int
    runs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"output": str(self.output), "num_bytes": self.num_bytes, "runs": list(self.runs)}


def report(
    paths: Sequence[StrPath],
    *,
    output: StrPath | None = None,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Write the report of a run, or the comparison of several, as one HTML file.

    Args:
        paths: Run folders, or bundles.
        output: File to write; None for ``report.html`` in the folder of one run, and
            ``comparison.html`` in the working folder for several.
        reporter: Receiver of messages.

    Raises:
        RunFolderError: A path is neither a run folder nor a bundle, or is damaged.
        ConfigError: The runs cannot be compared.
        StorageError: The page cannot be written.
    """
    reporter = reporter or Reporter()
    folders = [Path(path) for path in paths]
    facts = [read_facts(folder) for folder in folders]
    file = Path(output) if output is not None else RunFolder(folders[0]).report_path
    text = render_report(facts[0], version=finetune.__version__)
    return write_page(text, file, runs=[str(folder) for folder in folders])


def write_page(text: str, file: Path, *, runs: Sequence[str]) -> ReportResult:
    """Write a page.

    Raises:
        StorageError: The path is a folder, or the disk is full or fails.
    """
    if file.is_dir():
        raise StorageError(
            f"Cannot write the report to {file}: it is a folder. Name a file, for example "
            f"--output {file / 'report.html'}."
        )
    write_text(file, text)
    return ReportResult(file, len(text.encode()), tuple(runs))
