"""Weights on the straight line from the linear probe to the last epoch.

Wortsman et al. 2022 (WiSE-FT, https://arxiv.org/abs/2109.01903): a network in between is often more
accurate than both ends. BatchNorm must be frozen, as its statistics would have to be recomputed.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.builders import Training
from finetune.bundle.bundle import load_model
from finetune.bundle.checkpoint_file import (
    NETWORK_PREFIX,
    load_checkpoint_file,
    save_checkpoint_file,
)
from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.commands.fit.finalize import choose_eval_batch_size
from finetune.data.dataset import create_loader
from finetune.evaluation.validation import (
    compute_calibrated_losses,
    compute_outputs,
    compute_validation_metrics,
)
from finetune.models.classifier import normalise
from finetune.models.head import find_linear_head, set_head
from finetune.probe.features.extractor import create_feature_extractor
from finetune.system.hardware import autocast
from finetune.system.run_folder import RunFolder
from finetune.training.checkpoint_io import PROBE_KEY
from finetune.training.optimization.feature_change import translate_out_of_memory
from finetune.types import Reporter

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Positions on the line that are compared with the probe, which is at 0. The last epoch is at 1."""

INTERPOLATION_KEY = "interpolation"
"""Key of the result in ``best.ckpt``."""


@dataclass(frozen=True, slots=True, eq=False)
class ValidationScore:
    """Score of a model on the validation images.

    Attributes:
        value: The metric that is compared.
        losses: Calibrated log loss of each image, shape (N,).
    """

    value: float
    losses: Tensor


@dataclass(frozen=True, slots=True)
class Interpolation:
    """Comparison of the positions on the line from the probe to the last epoch.

    Attributes:
        metric: Metric of the validation images that is compared.
        scores: The metric at each position, from the probe at 0 to the last epoch at 1.
        fraction: Position of the best model; None where an earlier epoch is better by more than
            the standard error of the difference.
        best_epoch_score: The metric of the best epoch; None where it is the last one or the probe.
    """

    metric: str
    scores: Mapping[float, float]
    fraction: float | None
    best_epoch_score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "scores": {f"{key:g}": value for key, value in self.scores.items()}}


def choose_position(
    metric: str,
    line: Mapping[float, ValidationScore],
    best_epoch: ValidationScore | None,
) -> Interpolation:
    """Return the best position on the line, or the best epoch where that is clearly better.

    The positions are few and lie on a smooth curve, so that the best of them is hardly chosen by
    chance. The best of many epochs is: in the middle of training, the rate is high and the weights
    are noisy. Therefore its calibrated loss must be lower by more than the standard error of the
    difference over the images (the one-standard-error rule of Breiman et al. 1984). Another metric,
    which the user has chosen, is compared as it is.

    Args:
        metric: Name of the metric; it is minimised if it is a loss.
        line: Scores by position.
        best_epoch: Score of the best epoch; None where it is on the line.
    """
    sign = 1 if metric.endswith("loss") else -1
    fraction = min(line, key=lambda position: (sign * line[position].value, -position))
    scores = {position: score.value for position, score in line.items()}
    if best_epoch is None:
        return Interpolation(metric, scores, fraction)
    gain = sign * (line[fraction].value - best_epoch.value)
    margin = 0.0
    if metric == "calibrated_loss":
        differences = line[fraction].losses - best_epoch.losses
        margin = float(differences.std() / len(differences) ** 0.5) if len(differences) > 1 else 0.0
    chosen = None if gain > margin else fraction
    return Interpolation(metric, scores, chosen, best_epoch.value)


def interpolate_best_model(
    run: RunFolder, training: Training, *, device: torch.device, reporter: Reporter
) -> Interpolation | None:
    """Replace the best model by the best one on the line from the probe to the last epoch.

    Args:
        run: Run folder whose last epoch is complete.
        training: Objects of the run.
        device: Device of the computation.
        reporter: Receiver of progress.

    Returns:
        The result; None where there is no such line, or the best model was chosen already.

    Raises:
        DataError: A file can no longer be read as before.
        OutOfMemoryError: A batch needs more memory than is available.
        StorageError: The disk is full or fails.
    """
    has_statistics = training.facts.has_batch_norm and training.config.model.batch_norm != "frozen"
    paths = (run.start_checkpoint_path, run.last_checkpoint_path, run.best_checkpoint_path)
    if has_statistics or not all(path.is_file() for path in paths):
        return None
    checkpoints = [load_checkpoint_file(path) for path in paths]
    step = checkpoints[1]["global_step"]
    if checkpoints[2].get(INTERPOLATION_KEY, {}).get("step") == step:
        return None
    start, last, best = (load_model(path).network for path in paths)
    first, end, current = start.state_dict(), last.state_dict(), best.state_dict()
    probe = _unscale_head(start, checkpoints[0][PROBE_KEY]["head_temperature"])
    is_elsewhere = PROBE_KEY not in checkpoints[2] and not _are_equal(current, end)
    num_passes = 1 + len(FRACTIONS) + is_elsewhere
    reporter.start("comparing the probe with the last epoch", num_passes * len(training.data.val))
    with translate_out_of_memory():
        network = copy.deepcopy(last).to(device)
        cards = [checkpoint[CARD_KEY] for checkpoint in checkpoints]
        line = {0.0: _evaluate(network, probe, cards[0], training, reporter)}
        for fraction in FRACTIONS:
            weights = interpolate_weights(first, end, fraction)
            line[fraction] = _evaluate(network, weights, cards[1], training, reporter)
        best_epoch = (
            _evaluate(network, current, cards[2], training, reporter) if is_elsewhere else None
        )
    reporter.finish()
    result = choose_position(training.config.checkpoint.monitor, line, best_epoch)
    if result.fraction is None:
        weights, card = current, cards[2]
    elif result.fraction == 0:
        weights, card = probe, cards[0]
    else:
        weights = interpolate_weights(first, end, result.fraction)
        card = cards[1]
    checkpoint = {
        "state_dict": {f"{NETWORK_PREFIX}{name}": value.cpu() for name, value in weights.items()},
        CARD_KEY: {**card, "facts": {**card.get("facts", {}), INTERPOLATION_KEY: result.to_json()}},
        INTERPOLATION_KEY: {**result.to_json(), "step": step},
    }
    if result.fraction == 0:
        checkpoint[PROBE_KEY] = checkpoints[0][PROBE_KEY]
    save_checkpoint_file(checkpoint, run.best_checkpoint_path)
    return result


def _unscale_head(network: nn.Module, temperature: float) -> dict[str, Tensor]:
    """Return the weights of a network with its head as the probe has fitted it."""
    network = copy.deepcopy(network)
    head = find_linear_head(network)
    assert head is not None, "a probe has a linear head"
    set_head(head, weight=head.weight * temperature, bias=head.bias * temperature)
    return network.state_dict()


def interpolate_weights(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], fraction: float
) -> dict[str, Tensor]:
    """Return the weights at a position from ``start`` at 0 to ``end`` at 1.

    Integers, such as the counters of BatchNorm, are those of ``end``.
    """
    return {
        name: torch.lerp(start[name], value, fraction) if value.is_floating_point() else value
        for name, value in end.items()
    }


def describe_interpolation(result: Interpolation) -> str:
    """Return the sentence that tells the user which model is the best."""
    scores = ", ".join(
        f"{score:.4f} at {position:g}" for position, score in sorted(result.scores.items())
    )
    line = f"val/{result.metric} from the probe at 0 to the last epoch at 1: {scores}"
    if result.fraction is None:
        return f"Best model: earlier weights with {result.best_epoch_score:.4f}. {line}."
    if result.fraction in (0, 1):
        name = "the linear probe" if result.fraction == 0 else "the last epoch"
        return f"Best model: {name}. {line}."
    return f"Best model: weights {result.fraction:.0%} of the way to the last epoch. {line}."


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@torch.inference_mode()
def _evaluate(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    card: Mapping[str, Any],
    training: Training,
    reporter: Reporter,
) -> ValidationScore:
    """Return the score of the validation images by a network with other weights and their card.

    Computed in the precision of training and without folding BatchNorm, as the validation of each
    epoch is, so that the last epoch has its loss in the table of epochs. What is shipped is
    measured again, in float32.
    """
    network.load_state_dict(weights)
    device = next(network.parameters()).device
    datamodule, spec = training.datamodule, training.network.spec
    loader = create_loader(
        datamodule.val_dataset,
        num_workers=datamodule.loader_options.num_workers,
        batch_size=choose_eval_batch_size(training),
    )
    logits, labels = [], []
    extractor = create_feature_extractor(network)
    for batch in loader:
        pixels = normalise(batch["image"].to(device), mean=spec.mean, std=spec.std)
        with autocast(training.config.trainer.precision, device):
            logits.append(extractor.head(extractor(pixels)[0]).float().cpu())
        labels.append(batch["label"])
        reporter.advance(len(batch["label"]))
    unshifted, card_shift = torch.cat(logits), ModelCard.from_json(card).shift
    shift = None if card_shift is None else torch.tensor(card_shift)
    shifted = unshifted if shift is None else unshifted + shift
    target = torch.cat(labels)
    metrics = compute_validation_metrics(
        compute_outputs(shifted, target),
        target,
        classes=training.data.classes,
        train_counts=training.data.class_counts,
        logit_shift=shift,
    )
    return ValidationScore(
        metrics[training.config.checkpoint.monitor],
        compute_calibrated_losses(compute_outputs(unshifted, target), target),
    )
