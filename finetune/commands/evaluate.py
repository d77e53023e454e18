"""Measure a model on labelled images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune import run_folder
from finetune.build import data_path, free_cores, resolve_accelerator
from finetune.bundle import load_model
from finetune.commands.read_data import readable_samples
from finetune.config.load import build_config, read_config_file
from finetune.data.decode import DEFAULT_MAX_PIXELS
from finetune.data.manifest import Manifest, labelled_with, read_manifest
from finetune.errors import ConfigError, DataError
from finetune.inference.evaluation import evaluate_files
from finetune.inference.predictor import Predictor
from finetune.types import Evaluation, Rejected, Reporter, Sample, Silent, Split


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """An evaluation with what it was made on.

    Attributes:
        model: The model as it was named.
        data: Where the images lie.
        split: The split that was measured, or None for all images.
        evaluation: The numbers.
        rejected: Files that were left out.
    """

    model: Path
    data: Path
    split: Split | None
    evaluation: Evaluation
    rejected: tuple[Rejected, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        classes = [stats.name for stats in self.evaluation.per_class]
        return {
            "model": str(self.model),
            "data": str(self.data),
            "split": self.split,
            "num_images": self.evaluation.num_images,
            "metrics": dict(self.evaluation.metrics),
            "per_class": {
                stats.name: {k: v for k, v in asdict(stats).items() if k != "name"}
                for stats in self.evaluation.per_class
            },
            "confusion_matrix": {
                "classes": classes,
                "rows_are_true": [list(row) for row in self.evaluation.confusion],
            },
            "rejected": [asdict(entry) for entry in self.rejected],
        }


@dataclass(frozen=True, slots=True)
class _Images:
    root: Path
    samples: Sequence[Sample]
    split: Split | None
    rejected: tuple[Rejected, ...] = ()


def evaluate(
    model: Path,
    data: Path | None = None,
    *,
    split: Split | None = None,
    device: str = "auto",
    batch_size: int = 32,
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
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    reporter = reporter or Silent()
    accelerator = resolve_accelerator(device)
    bundle = load_model(model)
    own = _own_manifest(model)
    images = _images(model, data, own, split, reporter)
    labelled_with(images.samples, bundle.card.classes)
    _warn_if_trained_on(images, own, reporter)
    manifest = Manifest(images.root, bundle.card.classes, tuple(images.samples))
    cores = free_cores()
    predictor = Predictor(
        bundle,
        device=accelerator,
        batch_size=batch_size,
        num_workers=cores - 1 if cores > 2 and len(images.samples) > 1000 else 0,
    )
    reporter.start("evaluating", len(images.samples))
    result = evaluate_files(
        predictor,
        manifest.paths(images.samples),
        manifest.labels(images.samples),
        on_batch=reporter.advance,
    )
    reporter.finish()
    return EvaluateResult(model, images.root, images.split, result, images.rejected)


def _images(
    model: Path, data: Path | None, own: Manifest | None, split: Split | None, reporter: Reporter
) -> _Images:
    if data is None and own is None:
        raise ConfigError(
            f"{model} is no run folder, so it holds no images to evaluate on. Name some: "
            f"finetune evaluate {model} FOLDER."
        )
    if own is not None and (data is None or _same_data(data, own)):
        chosen = _held_out(own.samples, split)
        reporter.note(f"On the {chosen} images that the run held out ({own.root}).")
        return _Images(own.root, own.of(chosen), chosen)
    assert data is not None
    samples, root, rejected = readable_samples(
        data, max_pixels=DEFAULT_MAX_PIXELS, reporter=reporter
    )
    if samples[0].split is None:
        if split is not None:
            raise DataError(f"{data} has no splits, so there is no {split} split. Drop --split.")
        return _Images(root, samples, None, tuple(rejected))
    chosen = _held_out(samples, split)
    kept = [sample for sample in samples if sample.split is chosen]
    return _Images(root, kept, chosen, tuple(rejected))


def _held_out(samples: Sequence[Sample], split: Split | None) -> Split:
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


def _own_manifest(model: Path) -> Manifest | None:
    """Return the manifest of a run folder, or None for a bundle or checkpoint alone."""
    if not (model / "manifest.csv").is_file():
        return None
    run = run_folder.existing(model)
    config = build_config(read_config_file(run.config), file=str(run.config))
    path = data_path(config)
    return read_manifest(run.manifest, root=path if path.is_dir() else path.parent)


def _same_data(data: Path, own: Manifest) -> bool:
    folder = data if data.is_dir() else data.parent
    return folder.resolve() == own.root.resolve()


def _warn_if_trained_on(images: _Images, own: Manifest | None, reporter: Reporter) -> None:
    if own is None:
        return
    trained = {path.resolve() for path in own.paths(own.of(Split.TRAIN))}
    seen = sum((images.root / sample.path).resolve() in trained for sample in images.samples)
    if seen:
        reporter.warn(
            f"{seen} of {len(images.samples)} images were trained on: the numbers flatter the model"
        )
