"""Command that writes the report of one run, or of several side by side."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import finetune
from finetune.commands.early_checks.stored_files import check_no_stored_file
from finetune.commands.ensembles.distinct_models import check_distinct_paths
from finetune.commands.report.collect import read_facts
from finetune.commands.report.photos.collect_photos import add_changed_photos, add_photos
from finetune.errors import ConfigError, StorageError
from finetune.report.comparison.comparison_page import render_comparison
from finetune.report.page import render_report
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import choose_main_split, get_metrics
from finetune.system.files import OUTPUT_REMEDY, write_text
from finetune.system.run_folder import RunFolder, is_run
from finetune.types import Reporter, StrPath

COMPARISON_NAME = "comparison.html"
"""Default name of the page of several runs, in the working folder."""


PHOTO_SECONDS = 60.0
"""Time that the pictures of a page may take unless it is given."""


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
    split: str | None = None,
    photo_seconds: float = PHOTO_SECONDS,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Write the report of a run, or the comparison of several, as one HTML file.

    Args:
        paths: Run folders, or bundles.
        output: File to write; None for ``report.html`` in the folder of one run, and
            ``comparison.html`` in the working folder for several.
        split: "val" or "test", the split that the page is about; None for the test split, else
            the validation split.
        photo_seconds: Time that pictures may take; 0 for a page without any.
        reporter: Receiver of messages.

    Raises:
        RunFolderError: A path is neither a run folder nor a bundle, or is damaged.
        ConfigError: The runs cannot be compared, or have no metrics of the split, or ``output`` is
            another file of a run or model.
        StorageError: The page cannot be written.
    """
    reporter = reporter or Reporter()
    folders = [Path(path) for path in paths]
    if output is not None and Path(output).name != RunFolder(folders[0]).report_path.name:
        check_no_stored_file("--output", Path(output))
    check_distinct_paths(folders)
    facts = [_choose_split(read_facts(folder), split) for folder in folders]
    if len(facts) > 1:
        check_same_classes(facts)
        if photo_seconds > 0 and is_run(folders[0]):
            facts = add_changed_photos(RunFolder(folders[0]), facts, seconds=photo_seconds)
        text = render_comparison(facts, version=finetune.__version__)
        default = Path(COMPARISON_NAME)
    else:
        run = folders[0]
        if photo_seconds > 0 and is_run(run):
            facts[0] = add_photos(RunFolder(run), facts[0], seconds=photo_seconds)
        text = render_report(facts[0], version=finetune.__version__)
        default = RunFolder(folders[0]).report_path
    file = default if output is None else Path(output)
    return write_page(text, file, runs=[str(folder) for folder in folders])


def write_report(
    runs: StrPath | Sequence[StrPath],
    *,
    output: StrPath | None = None,
    split: str | None = None,
    images: bool = True,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Write the page of a run, or of several side by side, as ``finetune report`` does.

    Args:
        runs: Run folder, cross-validation or bundle; several are compared.
        output: HTML file to write; None for ``report.html`` in the folder of one run, and
            ``comparison.html`` in the working folder for several.
        split: "val" or "test", the split that the page is about; None for the test split, else
            the validation split.
        images: Whether the page shows images and pictures of the network.
        reporter: Receiver of messages; None discards them.

    Raises:
        FinetuneError: Any error that the user can fix.
    """
    if split not in (None, "val", "test"):
        raise ConfigError(f"split={split!r}: unknown split. Choose val or test.")
    paths = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not paths:
        raise ConfigError("No run was given. Pass the folder of a run, or several.")
    seconds = PHOTO_SECONDS if images else 0.0
    return report(paths, output=output, split=split, photo_seconds=seconds, reporter=reporter)


def _choose_split(facts: RunFacts, split: str | None) -> RunFacts:
    """Return the facts with the split that their page is about.

    Raises:
        ConfigError: The run has no metrics of it.
    """
    chosen = replace(facts, chosen_split=split)
    if split is not None and choose_main_split(chosen) is None:
        known = ", ".join(get_metrics(facts)) or "none"
        raise ConfigError(
            f"--split {split}: {facts.path} has no metrics of this split (found: {known}). Leave "
            f"the option out, or choose another split."
        )
    return chosen


def check_same_classes(runs: Sequence[RunFacts]) -> None:
    """Check that runs can be compared: the same classes, in any order, of the same kind.

    Raises:
        ConfigError: They differ; the message names the first difference.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.is_multi_label != first.is_multi_label:
            one, many = (first, run) if run.is_multi_label else (run, first)
            raise ConfigError(
                f"Cannot compare {one.path} with {many.path}: one gives a class to each image, the "
                f"other any number of labels. Write a report of each: finetune report RUN."
            )
        if set(run.classes) != set(first.classes):
            raise ConfigError(
                f"Cannot compare {run.path} with {first.path}: their classes differ "
                f"({_describe_difference(first, run)}). Write a report of each: finetune report "
                f"RUN."
            )


def _describe_difference(first: RunFacts, second: RunFacts) -> str:
    parts = []
    for run, other in ((first, second), (second, first)):
        only = sorted(set(run.classes) - set(other.classes))
        if only:
            shown = ", ".join(f"'{name}'" for name in only[:3])
            more = f" and {len(only) - 3} more" if len(only) > 3 else ""
            parts.append(f"only {run.name} has {shown}{more}")
    return "; ".join(parts)


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
    write_text(file, text, OUTPUT_REMEDY)
    return ReportResult(file, len(text.encode()), tuple(runs))
