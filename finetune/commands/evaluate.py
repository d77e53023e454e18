"""Measure a model on labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.audit.leakage import find_rows_without_leaks
from finetune.bundle.bundle import load_model
from finetune.commands.prepare_data import find_readable_samples, resolve_data_path
from finetune.commands.stored_run import check_files_exist, read_stored_config, read_stored_manifest
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.data.images.decode import DEFAULT_MAX_PIXELS
from finetune.data.manifest import Manifest, check_labels
from finetune.errors import ConfigError, DataError
from finetune.inference.predictor import Predictor, check_tta
from finetune.inference.scoring import details_to_json, evaluate_logits, metrics_to_json
from finetune.system import run_folder
from finetune.system.hardware import count_available_cores, resolve_accelerator
from finetune.types import Evaluation, RejectedFile, Reporter, Sample, Split


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """An evaluation with what it was made on.

    Attributes:
        model: The model as it was named.
        data: Where the images lie.
        split: The split that was measured, or None for all images.
        evaluation: The numbers.
        rejected: Files that were left out.
        tta: Whether each image was also seen in a mirror.
        prior: Which shares of the classes the answers are for, as plain values.
        without_leaks: The numbers without the images whose copies the run has seen before; None
            where there are none such.
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
        """Return plain values."""
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
    """What a run was trained on: the folder or CSV that was named, and its images."""

    path: Path
    manifest: Manifest


def evaluate(
    model: Path,
    data: Path | None = None,
    *,
    split: Split | None = None,
    device: str = "auto",
    batch_size: int = 32,
    tta: bool = False,
    prior: str | None = None,
    reporter: Reporter | None = None,
) -> EvaluateResult:
    """Return what a model is worth on labelled images.

    Args:
        model: A run folder, a bundle folder or a checkpoint.
        data: Class folders, split folders or a CSV; None, or the run's own folder, takes the images
            that the run held out.
        split: Which split; None takes test, else val, else all images.
        device: "cpu", "cuda", "mps" or "auto".
        batch_size: Images at once.
        tta: Average over each image and its mirror image.
        prior: Class shares that the answers are for: "uniform", "train", "model" or a file; None
            takes those that the model's card names.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    reporter = reporter or Reporter()
    accelerator = resolve_accelerator(device, setting="--device")
    bundle = apply_prior(load_model(model), prior, reporter)
    if tta:
        check_tta(bundle.card)
    own = _read_run_dataset(model)
    images = _select_images(model, data, own, split, reporter)
    check_labels(images.samples, bundle.card.classes)
    _warn_about_training_images(images, own, reporter)
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
    clean = None if own is None else find_rows_without_leaks(own.manifest, files)
    if clean is None:
        return result
    without = evaluate_logits(predictor, logits[clean], [labels[row] for row in clean])
    return replace(result, without_leaks=without)


def _select_images(
    model: Path,
    data: Path | None,
    run_dataset: _RunDataset | None,
    split: Split | None,
    reporter: Reporter,
) -> _EvaluationSet:
    if data is None and run_dataset is None:
        raise ConfigError(
            f"{model} is no run folder, so it holds no images to evaluate on. Name some: "
            f"finetune evaluate {model} FOLDER."
        )
    if run_dataset is not None and (data is None or data.resolve() == run_dataset.path.resolve()):
        return _select_run_split(run_dataset, split, reporter)
    assert data is not None
    samples, root, rejected = find_readable_samples(
        data, max_pixels=DEFAULT_MAX_PIXELS, reporter=reporter
    )
    if all(sample.split is None for sample in samples):
        if split is not None:
            raise DataError(f"{data} has no splits, so there is no {split} split. Drop --split.")
        return _EvaluationSet(root, samples, None, tuple(rejected))
    chosen = _choose_split(samples, split)
    kept = [sample for sample in samples if sample.split is chosen]
    return _EvaluationSet(root, kept, chosen, tuple(rejected))


def _select_run_split(
    run_dataset: _RunDataset, split: Split | None, reporter: Reporter
) -> _EvaluationSet:
    manifest = run_dataset.manifest
    chosen = _choose_split(manifest.samples, split)
    samples = manifest.get_samples(chosen)
    check_files_exist(manifest, samples)
    reporter.note(f"On the run's own {chosen} images ({run_dataset.path}).")
    return _EvaluationSet(manifest.root, samples, chosen)


def _choose_split(samples: Sequence[Sample], split: Split | None) -> Split:
    """Return the split that was asked for, else test, else val, else train.

    Raises:
        DataError: There is none such.
    """
    present = {sample.split for sample in samples}
    if split is not None:
        if split not in present:
            names = ", ".join(sorted(str(name) for name in present))
            raise DataError(f"There is no {split} split; there is {names}.")
        return split
    return next(s for s in (Split.TEST, Split.VAL, Split.TRAIN) if s in present)


def _read_run_dataset(model: Path) -> _RunDataset | None:
    """Return the images of a run folder, or None for a bundle or checkpoint alone."""
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
    trained = {path.resolve() for path in manifest.resolve_paths(manifest.get_samples(Split.TRAIN))}
    seen = sum((images.root / sample.path).resolve() in trained for sample in images.samples)
    if seen:
        reporter.warn(
            f"{seen} of {len(images.samples)} images were trained on: the numbers flatter the model"
        )
