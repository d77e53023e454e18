"""Evaluation of a model on labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.audit.leakage import find_rows_without_leaks
from finetune.bundle.bundle import load_model
from finetune.commands.prepare_data import find_readable_samples, resolve_data_path
from finetune.commands.stored_run import check_files_exist, read_stored_config, read_stored_manifest
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.data.manifest import Manifest, check_labels
from finetune.errors import ConfigError, DataError
from finetune.inference.predictor import Predictor, check_tta
from finetune.inference.scoring import details_to_json, evaluate_logits, metrics_to_json
from finetune.system import run_folder
from finetune.system.hardware import count_available_cores, prepare_accelerator
from finetune.types import (
    DEFAULT_READ_OPTIONS,
    Evaluation,
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
    """

    model: Path
    data: Path
    split: Split | None
    evaluation: Evaluation
    rejected: tuple[RejectedFile, ...]
    tta: bool = False
    prior: Mapping[str, Any] = field(default_factory=dict)
    without_leaks: Evaluation | None = None

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
            "rejected": [asdict(entry) for entry in self.rejected],
        }


@dataclass(frozen=True, slots=True)
class _EvaluationSet:
    root: Path
    samples: Sequence[Sample]
    split: Split | None
    rejected: tuple[RejectedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class _RunDataset:
    """Data path of a run, and its manifest."""

    path: Path
    manifest: Manifest


def evaluate(
    model: StrPath,
    data: StrPath | None = None,
    *,
    split: Split | str | None = None,
    device: str = "auto",
    batch_size: int = 32,
    tta: bool = False,
    prior: str | None = None,
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
    run_dataset = _read_run_dataset(model)
    images = _select_images(model, data, run_dataset, split, reporter)
    check_labels(images.samples, bundle.card.classes)
    _warn_about_training_images(images, run_dataset, reporter)
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
    logits = predictor.predict_logits(files, on_batch=reporter.advance)
    reporter.finish()
    result = EvaluateResult(
        model,
        images.root,
        images.split,
        evaluate_logits(predictor, logits, labels),
        images.rejected,
        tta,
        prior_to_json(bundle.card, requested=prior),
    )
    if run_dataset is None:
        return result
    clean_rows = find_rows_without_leaks(run_dataset.manifest, files)
    if clean_rows is None:
        return result
    clean_labels = [labels[row] for row in clean_rows]
    without_leaks = evaluate_logits(predictor, logits[clean_rows], clean_labels)
    return replace(result, without_leaks=without_leaks)


def _select_images(
    model: Path,
    data: Path | None,
    run_dataset: _RunDataset | None,
    split: Split | None,
    reporter: Reporter,
) -> _EvaluationSet:
    if data is None and run_dataset is None:
        raise ConfigError(
            f"{model} is not a run folder, so it has no held-out images. Give a folder of labelled "
            f"images: finetune evaluate {model} FOLDER"
        )
    if run_dataset is not None and (data is None or data.resolve() == run_dataset.path.resolve()):
        return _select_run_split(run_dataset, split, reporter)
    assert data is not None
    samples, root, rejected = find_readable_samples(
        data, options=DEFAULT_READ_OPTIONS, reporter=reporter
    )
    if all(sample.split is None for sample in samples):
        if split is not None:
            raise DataError(f"{data} has no {split} split: it has no splits. Leave out --split.")
        return _EvaluationSet(root, samples, None, tuple(rejected))
    selected = _choose_split(samples, split)
    in_split = [sample for sample in samples if sample.split is selected]
    return _EvaluationSet(root, in_split, selected, tuple(rejected))


def _select_run_split(
    run_dataset: _RunDataset, split: Split | None, reporter: Reporter
) -> _EvaluationSet:
    manifest = run_dataset.manifest
    selected = _choose_split(manifest.samples, split)
    samples = manifest.get_samples(selected)
    check_files_exist(manifest, samples)
    reporter.note(f"Evaluating on the {selected} split of the run ({run_dataset.path}).")
    return _EvaluationSet(manifest.root, samples, selected)


def _choose_split(samples: Sequence[Sample], split: Split | None) -> Split:
    """Return the requested split, or else test, val or train, whichever is present first.

    Raises:
        DataError: The requested split is not present.
    """
    present = {sample.split for sample in samples}
    if split is not None:
        if split not in present:
            names = ", ".join(sorted(str(name) for name in present))
            raise DataError(f"There is no {split} split; available: {names}.")
        return split
    return next(s for s in (Split.TEST, Split.VAL, Split.TRAIN) if s in present)


def _read_run_dataset(model: Path) -> _RunDataset | None:
    """Return the dataset of a run folder; None for a bundle or checkpoint outside of one."""
    if not (model / "manifest.csv").is_file():
        return None
    run = run_folder.open_existing(model)
    config = read_stored_config(run)
    return _RunDataset(resolve_data_path(config), read_stored_manifest(run, config))


def _warn_about_training_images(
    images: _EvaluationSet, run_dataset: _RunDataset | None, reporter: Reporter
) -> None:
    if run_dataset is None:
        return
    manifest = run_dataset.manifest
    training_files = {
        path.resolve() for path in manifest.resolve_paths(manifest.get_samples(Split.TRAIN))
    }
    num_trained_on = sum(
        (images.root / sample.path).resolve() in training_files for sample in images.samples
    )
    if num_trained_on:
        reporter.warn(
            f"{num_trained_on} of {len(images.samples)} images are training images of the model: "
            f"the metrics are optimistic"
        )
