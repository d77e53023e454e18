"""Images that a model is evaluated on: those of its run, as they are now, or others."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.commands.image_matching import Match
from finetune.commands.prepare_data import find_readable_samples
from finetune.commands.rejected_files import RangeCheck
from finetune.commands.run_images import LocatedImages, RunImages, locate_images
from finetune.commands.run_split import (
    RunDifferences,
    choose_split,
    report_differences,
    select_run_images,
)
from finetune.commands.stored_run import check_files_exist
from finetune.data.images.validate import filter_readable
from finetune.data.layouts.split_names import SplitSetting
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.errors import ConfigError, DataError
from finetune.types import ReadOptions, RejectedFile, Reporter, Sample, Split


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Images to evaluate, with their relation to those of a run.

    Attributes:
        root: Folder that the paths of the samples are relative to.
        samples: Images.
        split: Evaluated split; None for all images.
        rejected: Files that were left out, with reasons.
        matches: Relation of each image to the run, in the same order; empty without a run.
        differences: Differences of the data from those of the run; None for other data.
    """

    root: Path
    samples: Sequence[Sample]
    split: Split | None
    rejected: tuple[RejectedFile, ...] = ()
    matches: Sequence[Match] = ()
    differences: RunDifferences | None = None

    def select(self, rows: Sequence[int], rejected: Sequence[RejectedFile]) -> "EvaluationSet":
        """Return some of the images, with the files of the others as rejected."""
        samples = [self.samples[row] for row in rows]
        matches = [self.matches[row] for row in rows] if self.matches else ()
        rejected = (*self.rejected, *rejected)
        return replace(self, samples=samples, matches=matches, rejected=rejected)


def select_images(
    model: Path,
    data: Path | None,
    run: RunImages | None,
    split: Split | None,
    splits: SplitSetting,
    options: ReadOptions,
    reporter: Reporter,
    *,
    multi_label_classes: Sequence[str] = (),
) -> EvaluationSet:
    """Return the images of a split of the run, or those of other data.

    Args:
        model: Path of the model, for messages.
        data: Folder or CSV as given; None for the images of the run.
        run: Images of the run; None for a model outside of a run folder.
        split: Split as requested.
        splits: How splits are found in other data.
        options: How image files are read.
        reporter: Receives progress, notes and warnings.
        multi_label_classes: Labels of a multi-label model.

    Raises:
        ConfigError: There are neither a run nor data.
        DataError: The data cannot be read, or the split does not exist.
    """
    if run is None:
        if data is None:
            raise ConfigError(
                f"{model} is not a run folder, so it has no held-out images. Give a folder of "
                f"labelled images: finetune evaluate {shlex.quote(str(model))} FOLDER"
            )
        tables = DEFAULT_TABLE_OPTIONS.adapt_to_other_data(multi_label_classes)
        return _select_other_images(data, None, split, splits, options, reporter, tables)
    if data is None and not run.path.exists():
        present = [sample.split for sample in run.manifest.samples]
        check_files_exist(run.manifest, run.manifest.get_samples(choose_split(present, split)))
    located = locate_images(data, run, reporter=reporter)
    if located.holds_run(run):
        return _select_run_images(located, run, split, options, reporter)
    return _select_other_images(
        located.path, located, split, located.splits, options, reporter, run.tables
    )


def _select_run_images(
    located: LocatedImages,
    run: RunImages,
    split: Split | None,
    options: ReadOptions,
    reporter: Reporter,
) -> EvaluationSet:
    """Return the images of a split of the run; those that it has not read are checked."""
    selected = select_run_images(located, run, split)
    root = located.scan.root
    unread = [
        sample
        for sample, match in zip(selected.samples, selected.matches, strict=True)
        if match.original is None or match.has_changed
    ]
    values = RangeCheck(options.pixel_range)
    _, rejected = filter_readable(root, unread, options=options, on_values=values.add)
    values.report(reporter)
    bad = {entry.path for entry in rejected}
    rows = [row for row, sample in enumerate(selected.samples) if sample.path not in bad]
    report_differences(located, run, selected, rejected, reporter)
    return EvaluationSet(
        root,
        [selected.samples[row] for row in rows],
        selected.split,
        tuple(rejected),
        [selected.matches[row] for row in rows],
        selected.differences,
    )


def _select_other_images(
    data: Path,
    located: LocatedImages | None,
    split: Split | None,
    splits: SplitSetting,
    options: ReadOptions,
    reporter: Reporter,
    tables: TableOptions,
) -> EvaluationSet:
    """Return the images of a split of the data, or all of them if they have no splits."""
    samples, root, rejected = find_readable_samples(
        data,
        options=options,
        reporter=reporter,
        splits=splits,
        tables=tables,
        scanned=None if located is None else located.complete_scan,
    )
    selected = None
    if any(sample.split is not None for sample in samples):
        selected = choose_split([sample.split for sample in samples], split)
        samples = [sample for sample in samples if sample.split is selected]
    elif split is not None:
        raise DataError(f"{data} has no {split} split: it has no splits. Leave out --split.")
    related = []
    if located is not None:
        paths = (sample.path for sample in located.scan.samples)
        matches = dict(zip(paths, located.matches, strict=True))
        related = [matches.get(sample.path, Match()) for sample in samples]
    return EvaluationSet(root, samples, selected, tuple(rejected), related)


def get_run_files(images: EvaluationSet, run: RunImages) -> list[Path]:
    """Return the files of the images, shape (N,), at the place that the run read them from."""
    return [
        images.root / sample.path
        if match.original is None
        else run.manifest.root / match.original.path
        for sample, match in zip(images.samples, images.matches, strict=True)
    ]
