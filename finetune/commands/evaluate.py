"""Evaluation of a model on labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.audit.leakage import find_rows_without_leaks
from finetune.bundle.bundle import load_model
from finetune.commands.image_matching import Match, match_images, report_training_images
from finetune.commands.prepare_data import find_readable_samples
from finetune.commands.rejected_files import RangeCheck, report_unreadable
from finetune.commands.run_images import (
    LocatedImages,
    RunImages,
    locate_images,
    read_run_images,
    read_run_of_part,
)
from finetune.commands.run_split import (
    RunDifferences,
    choose_split,
    report_differences,
    select_run_images,
)
from finetune.commands.stored_run import check_files_exist
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.config.load import build_config
from finetune.data.images.validate import filter_readable
from finetune.data.layouts.split_names import SplitSetting
from finetune.data.manifest import Manifest, check_labels
from finetune.errors import ConfigError, DataError
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import details_to_json, evaluate_logits, metrics_to_json
from finetune.inference.tta import check_tta
from finetune.system.hardware import prepare_accelerator
from finetune.system.host import count_available_cores
from finetune.types import (
    Evaluation,
    ReadOptions,
    RejectedFile,
    Reporter,
    Sample,
    Split,
    StrPath,
)


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Evaluation of a model, with the model and the images that it is for.

    Attributes:
        model: Model path as given.
        data: Root of the images.
        split: Evaluated split; None for all images.
        evaluation: Metrics.
        rejected: Files that were left out, with reasons.
        tta: Whether probabilities were averaged over each image and its horizontal flip.
        prior: JSON description of the target class prior, see ``prior_to_json``.
        without_leaks: Metrics without leaked images, whose duplicates are in the training or
            validation split of the run; None if there are none.
        num_training_images: Number of evaluated images that the model was trained on, by path and
            content; None if the model is not in a run folder.
        differences: Differences of the data from those of the run; None for other data.
    """

    model: Path
    data: Path
    split: Split | None
    evaluation: Evaluation
    rejected: tuple[RejectedFile, ...]
    tta: bool = False
    prior: Mapping[str, Any] = field(default_factory=dict)
    without_leaks: Evaluation | None = None
    num_training_images: int | None = None
    differences: RunDifferences | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        classes = [stats.name for stats in self.evaluation.per_class]
        return {
            "model": str(self.model),
            "data": str(self.data),
            "split": self.split,
            "tta": self.tta,
            "prior": dict(self.prior),
            "metrics": metrics_to_json(self.evaluation),
            **details_to_json(self.evaluation),
            "confusion_matrix": {
                "classes": classes,
                "counts": [list(row) for row in self.evaluation.confusion_matrix],
            },
            "without_leaks": None
            if self.without_leaks is None
            else {
                "metrics": metrics_to_json(self.without_leaks),
                **details_to_json(self.without_leaks),
            },
            "num_training_images": self.num_training_images,
            "differences": None if self.differences is None else self.differences.to_json(),
            "rejected": [asdict(entry) for entry in self.rejected],
        }


@dataclass(frozen=True, slots=True)
class _EvaluationSet:
    """Images to evaluate, with their relation to those of a run; empty without a run."""

    root: Path
    samples: Sequence[Sample]
    split: Split | None
    rejected: tuple[RejectedFile, ...] = ()
    matches: Sequence[Match] = ()
    differences: RunDifferences | None = None

    def select(self, rows: Sequence[int], rejected: Sequence[RejectedFile]) -> "_EvaluationSet":
        """Return some of the images, with the files of the others as rejected."""
        samples = [self.samples[row] for row in rows]
        matches = [self.matches[row] for row in rows] if self.matches else ()
        rejected = (*self.rejected, *rejected)
        return replace(self, samples=samples, matches=matches, rejected=rejected)


def evaluate(
    model: StrPath,
    data: StrPath | None = None,
    *,
    split: Split | str | None = None,
    device: str = "auto",
    batch_size: int = 32,
    tta: bool = False,
    prior: str | None = None,
    splits: str | Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> EvaluateResult:
    """Evaluate a model on labelled images.

    Args:
        model: Run folder, bundle folder or checkpoint.
        data: Class folders, split folders or a CSV; None, or the data path of the run, takes the
            held-out images of the run.
        split: Split to evaluate, "train", "val" or "test"; None takes test, else val, else all
            images.
        device: "cpu", "cuda", "mps" or "auto".
        batch_size: Images per batch.
        tta: Whether to average over each image and its horizontal flip.
        prior: Target class prior: "uniform", "train", "model" or a file; None takes that of the
            model card.
        splits: Split folders of the data, as the config key ``data.splits``; None takes those of
            the run if the data have them, and else finds them by their names.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    reporter = reporter or Reporter()
    model, data = Path(model), None if data is None else Path(data)
    if split not in (None, *Split):
        raise ConfigError(f"Unknown split '{split}'. Choose one of {', '.join(Split)}.")
    split = None if split is None else Split(split)
    accelerator = prepare_accelerator(device, setting="--device")
    bundle = apply_prior(load_model(model), prior, reporter)
    if tta:
        check_tta(bundle.card)
    run = read_run_images(model)
    setting: SplitSetting = "auto"
    if splits is not None:
        setting = build_config({}, flags={"data.splits": ("splits", splits)}).data.split_setting
        run = None if run is None else replace(run, splits=setting)
    images = _select_images(model, data, run, split, setting, bundle.card.read_options, reporter)
    check_labels(images.samples, bundle.card.classes)
    num_training_images = _count_training_images(images, run or read_run_of_part(model), reporter)
    manifest = Manifest(images.root, bundle.card.classes, tuple(images.samples))
    cores = count_available_cores()
    predictor = Predictor(
        bundle,
        device=accelerator,
        batch_size=batch_size,
        num_workers=cores - 1 if cores > 2 and len(images.samples) > 1000 else 0,
        tta=tta,
    )
    reporter.start("evaluating", len(images.samples))
    labels = manifest.encode_labels(images.samples)
    files = manifest.resolve_paths(images.samples)
    lost: dict[int, str] = {}
    logits = predictor.predict_logits(files, on_batch=reporter.advance, unreadable=lost)
    reporter.finish()
    if lost:
        kept, rejected = report_unreadable(images.samples, images.root, lost, reporter)
        labels, logits = [labels[row] for row in kept], logits[kept]
        images = images.select(kept, rejected)
    result = EvaluateResult(
        model,
        images.root,
        images.split,
        evaluate_logits(predictor, logits, labels),
        images.rejected,
        tta,
        prior_to_json(bundle.card, requested=prior),
        num_training_images=num_training_images,
        differences=images.differences,
    )
    if run is None:
        return result
    clean_rows = find_rows_without_leaks(run.manifest, _get_run_files(images, run))
    if clean_rows is None:
        return result
    clean_labels = [labels[row] for row in clean_rows]
    without_leaks = evaluate_logits(predictor, logits[clean_rows], clean_labels)
    return replace(result, without_leaks=without_leaks)


def _select_images(
    model: Path,
    data: Path | None,
    run: RunImages | None,
    split: Split | None,
    splits: SplitSetting,
    options: ReadOptions,
    reporter: Reporter,
) -> _EvaluationSet:
    """Return the images of a split of the run, or those of other data."""
    if run is None:
        if data is None:
            raise ConfigError(
                f"{model} is not a run folder, so it has no held-out images. Give a folder of "
                f"labelled images: finetune evaluate {model} FOLDER"
            )
        return _select_other_images(data, None, split, splits, options, reporter)
    if data is None and not run.path.exists():
        present = [sample.split for sample in run.manifest.samples]
        check_files_exist(run.manifest, run.manifest.get_samples(choose_split(present, split)))
    located = locate_images(data, run, reporter=reporter)
    if located.holds_run(run):
        return _select_run_images(located, run, split, options, reporter)
    return _select_other_images(located.path, located, split, located.splits, options, reporter)


def _select_run_images(
    located: LocatedImages,
    run: RunImages,
    split: Split | None,
    options: ReadOptions,
    reporter: Reporter,
) -> _EvaluationSet:
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
    return _EvaluationSet(
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
) -> _EvaluationSet:
    """Return the images of a split of the data, or all of them if they have no splits."""
    samples, root, rejected = find_readable_samples(
        data,
        options=options,
        reporter=reporter,
        splits=splits,
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
    return _EvaluationSet(root, samples, selected, tuple(rejected), related)


def _get_run_files(images: _EvaluationSet, run: RunImages) -> list[Path]:
    """Return the files of the images at the place that the run read them from."""
    return [
        images.root / sample.path
        if match.original is None
        else run.manifest.root / match.original.path
        for sample, match in zip(images.samples, images.matches, strict=True)
    ]


def _count_training_images(
    images: _EvaluationSet, run: RunImages | None, reporter: Reporter
) -> int | None:
    """Return the number of images that the model was trained on, and warn of them."""
    if run is None:
        return None
    matches = images.matches or match_images(
        images.root, images.samples, run.manifest, reporter=reporter
    )
    return report_training_images(matches, reporter)
