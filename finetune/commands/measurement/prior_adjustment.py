"""Choice of the strength with which a run's probabilities are adjusted to another class prior."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.builders import Training
from finetune.bundle.bundle import ModelBundle
from finetune.data.training_data import group_samples
from finetune.evaluation.calibration import fit_temperature
from finetune.evaluation.prior_strength import StrengthChoice, choose_strength
from finetune.evaluation.priors import adjust_priors, compute_logit_shift, is_same_prior
from finetune.probe.linear_probe import ProbeResult
from finetune.system.files import write_file_atomically
from finetune.system.run_folder import RunFolder
from finetune.types import Split
from finetune.units import format_count, format_percent

MIN_VAL_IMAGES_PER_CLASS = 20
"""Validation images of the rarest class from which they suffice on their own."""

_MAX_ACCURACY_GAP = 2.0
"""Standard errors by which out-of-fold accuracy may exceed that of the validation images.

Beyond, training images have duplicates that the audit did not find, in several folds.
"""


@dataclass(frozen=True, slots=True)
class PriorAdjustment:
    """Strength of the adjustment of a run's model, and the images that it was chosen on.

    Attributes:
        choice: Chosen strength and its effect on these images.
        temperature: Temperature of the model's logits that the strength assumes.
        applied_strength: Strength for the logits divided by the temperature on the model card.
        num_val_images: Number of validation images.
        num_train_images: Number of training images, with out-of-fold predictions of the probe.
    """

    choice: StrengthChoice
    temperature: float
    applied_strength: float
    num_val_images: int
    num_train_images: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.choice.to_json(),
            "temperature": self.temperature,
            "applied_strength": self.applied_strength,
            "num_val_images": self.num_val_images,
            "num_train_images": self.num_train_images,
        }


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutLogits:
    """Logits of images that a model was not fitted to.

    Attributes:
        logits: Unnormalised scores, uncalibrated, shape (N, K).
        target: Class indices, int64, shape (N,).
        groups: Groups of dependent images, in the form of ``encode_groups``, shape (N,).
    """

    logits: Tensor
    target: Tensor
    groups: NDArray[np.int64]


def needs_strength(training: Training) -> bool:
    """Return whether the run chooses the strength of its adjustment on held-out images."""
    chosen = training.config.imbalance
    return chosen.head_rebalancing == "post_hoc" and chosen.post_hoc_strength == "held_out"


def save_probe_predictions(run: RunFolder, training: Training, result: ProbeResult) -> None:
    """Write the probe's out-of-fold logits of the training images, for the end of the run.

    Raises:
        StorageError: The disk is full or fails.
    """
    labels = training.data.train.labels
    is_train = result.held_out_rows < len(labels)
    rows = result.held_out_rows[is_train]
    probabilities = result.held_out_probabilities[torch.from_numpy(is_train)]
    logits = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
    if training.probe is not None and training.probe.logit_offset is not None:
        logits = logits - training.probe.logit_offset
    model_prior = training.module.card["priors"]["model"]
    path = run.probe_predictions_path
    with write_file_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            rows=rows,
            labels=labels[rows],
            logits=logits.numpy(),
            model_prior=np.asarray(model_prior, np.float64),
        )


def choose_prior_adjustment(
    run: RunFolder,
    training: Training,
    bundle: ModelBundle,
    val: HeldOutLogits,
    *,
    label_shift: Tensor | None,
) -> PriorAdjustment | None:
    """Choose the strength for the monitored metric; None if the model's prior is not known.

    Validation images count with the logits of the model. If they have few images of a class, the
    training images count, too, with the out-of-fold logits of the probe. Each kind is divided by a
    temperature of its own first, as overconfident logits need a stronger shift.

    Args:
        run: Run folder, with the probe's predictions if there was a probe.
        training: Objects of the run, with the manifest's groups.
        bundle: Best model, with its temperature.
        val: Validation images with the logits of the model.
        label_shift: Logit adjustment to the class prior of the validation images, if it differs
            from the model prior by more than chance, shape (K,); then they alone count.
    """
    priors = bundle.card.priors
    if priors is None or not len(val.target):
        return None
    shift = compute_logit_shift(adjust_priors(priors, strength=1).effective, priors.model)
    train = (
        None if label_shift is not None else _read_probe_predictions(run, training, priors.model)
    )
    choice, temperature, num_train_images = choose_on_held_out(
        val,
        train,
        torch.tensor(shift),
        train_prior=priors.train,
        metric=training.config.trainer.monitor,
        label_shift=label_shift,
    )
    return PriorAdjustment(
        choice,
        temperature=temperature,
        applied_strength=choice.strength * temperature / bundle.card.temperature,
        num_val_images=len(val.target),
        num_train_images=num_train_images,
    )


def choose_on_held_out(
    val: HeldOutLogits,
    train: HeldOutLogits | None,
    shift: Tensor,
    *,
    train_prior: Sequence[float],
    metric: str,
    label_shift: Tensor | None = None,
) -> tuple[StrengthChoice, float, int]:
    """Choose the strength on validation images, and on training images if those are few.

    Args:
        val: Validation images with the logits of the model.
        train: Training images with out-of-fold logits; None for none.
        shift: Logit adjustment at a strength of 1, shape (K,).
        train_prior: Class frequencies of the training images, shape (K,).
        metric: Metric that ``choose_strength`` knows.
        label_shift: Logit adjustment to the class prior of the validation images, shape (K,).

    Returns:
        The choice, the temperature of the model's logits, and the number of training images used.
    """
    temperature = fit_temperature(val.logits, val.target, shift=label_shift)
    parts = [HeldOutLogits(val.logits / temperature, val.target, val.groups)]
    if train is not None and _has_rare_class(val.target, train_prior) and not _is_leaky(train, val):
        own_temperature = fit_temperature(train.logits, train.target)
        parts.append(HeldOutLogits(train.logits / own_temperature, train.target, train.groups))
    choice = choose_strength(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.target for part in parts]),
        shift,
        metric=metric,
        label_shift=label_shift,
        groups=_concatenate_groups(parts),
    )
    return choice, temperature, sum(len(part.target) for part in parts[1:])


def apply_prior_adjustment(bundle: ModelBundle, adjustment: PriorAdjustment | None) -> ModelBundle:
    """Return the bundle with the target prior on its model card."""
    if adjustment is None:
        return bundle
    assert bundle.card.priors is not None, "the adjustment was chosen for them"
    priors = adjust_priors(bundle.card.priors, strength=adjustment.applied_strength)
    return replace(bundle, card=replace(bundle.card, priors=priors))


def describe_prior_adjustment(adjustment: PriorAdjustment) -> str:
    """Return the chosen strength and what it does to the images that it was chosen on."""
    choice = adjustment.choice
    images = format_count(adjustment.num_val_images, "validation image")
    if adjustment.num_train_images:
        images += f" and {adjustment.num_train_images:,} training images (out of fold)"
    if choice.strength == 0:
        return (
            f"Class prior: not adjusted. On {images} no strength of post_hoc is clearly better for "
            f"{choice.metric}; in full: {_describe_effect(choice.before, choice.full)}."
        )
    return (
        f"Class prior: adjusted by post_hoc with strength {choice.strength:g}, chosen for "
        f"{choice.metric} on {images}, where {_describe_effect(choice.before, choice.after)}."
    )


def _concatenate_groups(parts: Sequence[HeldOutLogits]) -> NDArray[np.int64]:
    """Return the groups of all parts; no group spans two of them."""
    starts = np.cumsum([0, *(len(part.groups) for part in parts[:-1])])
    return np.concatenate([part.groups + start for part, start in zip(parts, starts, strict=True)])


def _describe_effect(before: dict[str, float], after: dict[str, float]) -> str:
    return (
        f"accuracy {format_percent(before['accuracy'])} -> {format_percent(after['accuracy'])}, "
        f"balanced accuracy {format_percent(before['balanced_accuracy'])} -> "
        f"{format_percent(after['balanced_accuracy'])}, macro-F1 "
        f"{format_percent(before['macro_f1'])} -> {format_percent(after['macro_f1'])}"
    )


def _has_rare_class(target: Tensor, train_prior: Sequence[float]) -> bool:
    counts = torch.bincount(target, minlength=len(train_prior))[torch.tensor(train_prior) > 0]
    return int(counts.min()) < MIN_VAL_IMAGES_PER_CLASS


def _read_probe_predictions(
    run: RunFolder, training: Training, model_prior: Sequence[float]
) -> HeldOutLogits | None:
    """Return the probe's out-of-fold logits; None without, or for another prior or other images."""
    path = run.probe_predictions_path
    if not path.is_file():
        return None
    with np.load(path) as stored:
        rows, labels, logits = stored["rows"], stored["labels"], stored["logits"]
        probe_prior: NDArray[np.float64] = stored["model_prior"]
    samples = training.manifest.get_samples(Split.TRAIN)
    current = np.asarray(training.manifest.encode_labels(samples), np.int64)
    if not is_same_prior(probe_prior.tolist(), model_prior):
        return None
    if len(rows) == 0 or rows.max() >= len(current) or (current[rows] != labels).any():
        return None
    groups = group_samples([samples[row] for row in rows])
    return HeldOutLogits(torch.from_numpy(logits), torch.from_numpy(labels), groups)


def _is_leaky(train: HeldOutLogits, val: HeldOutLogits) -> bool:
    """Return whether out-of-fold accuracy exceeds that of the validation images beyond chance."""
    means, variances = zip(
        *(_compute_mean_and_variance(part) for part in (train, val)), strict=True
    )
    return bool(means[0] - means[1] > _MAX_ACCURACY_GAP * sum(variances) ** 0.5)


def _compute_mean_and_variance(part: HeldOutLogits) -> tuple[float, float]:
    """Return the accuracy and the variance of this mean over independent groups."""
    is_correct = (part.logits.argmax(dim=1) == part.target).double().numpy()
    mean = float(is_correct.mean())
    deviations = np.bincount(part.groups, is_correct - mean)
    return mean, float(np.square(deviations).sum()) / len(is_correct) ** 2
