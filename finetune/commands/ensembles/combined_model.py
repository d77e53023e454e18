"""Model that several paths name together: an ensemble, with equal or fitted weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bundle.bundle import ModelBundle, combine_models, load_model
from finetune.commands.ensembles.distinct_models import (
    check_distinct_models,
    check_distinct_paths,
)
from finetune.commands.ensembles.member_runs import find_shared_validation_images, read_member_runs
from finetune.commands.ensembles.weighting import check_weighting
from finetune.data.manifest import Manifest
from finetune.errors import ConfigError
from finetune.evaluation.mixture_weights import compute_mixture_loss, fit_mixture_weights
from finetune.inference.predictor import Predictor
from finetune.types import Reporter, StrPath
from finetune.units import format_count

_MIN_WEIGHT = 1e-3
"""Weight below which a member is left out, as it costs time and changes no third decimal."""


@dataclass(frozen=True, slots=True)
class WeightFit:
    """Weights of an ensemble that were fitted on validation images.

    Attributes:
        weights: Weight of each model; 0 leaves one out.
        num_images: Number of validation images.
        loss: Log loss of the weighted mean on them.
        equal_loss: Log loss of the mean with equal weights.
    """

    weights: tuple[float, ...]
    num_images: int
    loss: float
    equal_loss: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "weights": list(self.weights),
            "num_images": self.num_images,
            "val_loss": self.loss,
            "val_loss_equal_weights": self.equal_loss,
        }


def to_paths(model: StrPath | Sequence[StrPath]) -> list[Path]:
    """Return the paths of one model or several.

    Raises:
        ConfigError: There is none, or one is given twice.
    """
    paths = [Path(model)] if isinstance(model, str) or not isinstance(model, Sequence) else []
    paths = paths or [Path(entry) for entry in model]  # type: ignore[union-attr]
    if not paths:
        raise ConfigError("No model is given. Give a run folder, a bundle folder or a checkpoint.")
    resolved = [path.resolve() for path in paths]
    repeated = next(
        (p for p, r in zip(paths, resolved, strict=True) if resolved.count(r) > 1), None
    )
    if repeated is not None:
        raise ConfigError(f"{repeated} is given twice. Give each model once.")
    return paths


def load_models(
    paths: Sequence[Path],
    *,
    weights: str = "equal",
    device: str = "cpu",
    batch_size: int = 32,
    reporter: Reporter,
) -> ModelBundle:
    """Return one model, or the mean of several.

    Args:
        paths: Run folders, bundle folders or checkpoints.
        weights: "equal", or "val" for those that minimise the log loss of the mean on the
            validation images that all runs share; of multi-label models over images and labels.
        device: Device that predicts the validation images.
        batch_size: Images per batch there.
        reporter: Receives progress, and a note on fitted weights.

    Raises:
        ConfigError: ``weights`` is unknown, or cannot be fitted, or two models are the same.
        ModelError: The models do not have the same classes.
        RunFolderError: A model is missing or damaged.
    """
    check_weighting(weights, num_models=len(paths))
    check_distinct_paths(paths)
    models = [load_model(path) for path in paths]
    if len(models) == 1:
        return models[0]
    combined = combine_models(models)
    check_distinct_models(models, paths)
    if weights == "equal":
        return combined
    fit = _fit_weights(combined, models, paths, device, batch_size, reporter)
    reporter.note(_describe_fit(fit, paths))
    kept = [(m, w) for m, w in zip(models, fit.weights, strict=True) if w > 0]
    facts = {"ensemble_weights": fit.to_json()}
    if len(kept) == 1:
        card = kept[0][0].card
        return replace(kept[0][0], card=replace(card, facts={**card.facts, **facts}))
    fitted = combine_models([m for m, _ in kept], weights=[w for _, w in kept], facts=facts)
    return replace(fitted, source=combined.source)


def list_members(bundle: ModelBundle, paths: Sequence[Path] = ()) -> tuple[tuple[str, float], ...]:
    """Return the path and weight of each member of an ensemble; empty for one network.

    Args:
        bundle: Loaded model.
        paths: Paths that it was loaded from. Those that fitted weights left out follow, with 0.
    """
    left_out = [(str(path), 0.0) for path, weight in _pair_weights(bundle, paths) if weight == 0]
    if not bundle.members:
        return ((str(bundle.source), 1.0), *left_out) if left_out else ()
    members = zip(bundle.members, bundle.weights, strict=True)
    return (*((str(member.source), weight) for member, weight in members), *left_out)


def get_first_path(bundle: ModelBundle, paths: Sequence[Path]) -> Path:
    """Return the path of a loaded model, or the first of several that have a weight."""
    return next((path for path, weight in _pair_weights(bundle, paths) if weight > 0), paths[0])


def _pair_weights(bundle: ModelBundle, paths: Sequence[Path]) -> list[tuple[Path, float]]:
    """Return the paths with their fitted weights; empty if none were fitted to them."""
    if len(paths) < 2:
        return []
    weights = bundle.card.facts.get("ensemble_weights", {}).get("weights", ())
    return list(zip(paths, weights, strict=False))


def _fit_weights(
    combined: ModelBundle,
    models: Sequence[ModelBundle],
    paths: Sequence[Path],
    device: str,
    batch_size: int,
    reporter: Reporter,
) -> WeightFit:
    """Return the weights of the models that minimise the log loss on shared validation images."""
    members = read_member_runs(paths)
    images = find_shared_validation_images(members, option="--weights val", reporter=reporter)
    manifest = Manifest(images.root, combined.card.classes, tuple(images.samples))
    targets = manifest.encode_targets(images.samples)
    files = [images.root / sample.path for sample in images.samples]
    predictor = Predictor(combined, device=device, batch_size=batch_size)
    reporter.start("fitting weights", len(files))
    logits = predictor.predict_logits(files, on_batch=reporter.advance)
    reporter.finish()
    by_member = predictor.compute_member_probabilities(logits).double().numpy()
    columns = _merge_ensembles(_select_true(by_member, targets), models)
    weights = fit_mixture_weights(columns)
    equal = np.full(len(models), 1 / len(models))
    weights = np.where(weights < _MIN_WEIGHT, 0.0, weights)
    weights /= weights.sum()
    return WeightFit(
        tuple(weights.tolist()),
        len(files),
        compute_mixture_loss(columns, weights),
        compute_mixture_loss(columns, equal),
    )


def _select_true(by_member: NDArray[np.float64], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probability of the true class of each image, shape (N, members).

    Of multi-label images that is the probability of each answer, shape (N * K, members): of yes for
    the labels of an image, and of no for the others.

    Args:
        by_member: Probabilities of each member, shape (members, N, K).
        targets: Class indices, shape (N,), or 1 for each label, shape (N, K).
    """
    if targets.ndim == 1:
        return by_member[:, np.arange(len(targets)), targets].T
    return np.where(targets > 0, by_member, 1 - by_member).reshape(len(by_member), -1).T


def _merge_ensembles(
    columns: NDArray[np.float64], models: Sequence[ModelBundle]
) -> NDArray[np.float64]:
    """Return the columns (N, models) of models, for those (N, members) of the ensembles in them."""
    merged, start = [], 0
    for model in models:
        shares = np.array(model.weights or (1.0,))
        merged.append(columns[:, start : start + len(shares)] @ shares)
        start += len(shares)
    return np.stack(merged, axis=1)


def _describe_fit(fit: WeightFit, paths: Sequence[Path]) -> str:
    weights = ", ".join(f"{p} {w:.3f}" for p, w in zip(paths, fit.weights, strict=True))
    left_out = any(weight == 0 for weight in fit.weights)
    return (
        f"Weights fitted on {format_count(fit.num_images, 'validation image')} that all runs "
        f"share: {weights} (log loss there {fit.loss:.4f}; with equal weights "
        f"{fit.equal_loss:.4f}){'. A model with weight 0 is left out' if left_out else ''}."
    )
