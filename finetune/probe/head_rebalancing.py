"""Rebalancing of a trained classifier for imbalanced classes: cRT and tau-normalisation.

Kang et al. 2020 (https://arxiv.org/abs/1910.09217): representations are learnt best with natural
sampling, and only the classifier suffers from class imbalance. Both methods extract the features
of the images once more, as a probe does.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.bundle.bundle import load_model
from finetune.bundle.checkpoint_file import (
    AVERAGE_KEY,
    NETWORK_PREFIX,
    load_checkpoint_file,
    save_checkpoint_file,
)
from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.priors import normalize_prior
from finetune.models.layer_groups import find_classifier_parameters
from finetune.probe.cross_validation import fit_head
from finetune.probe.features.cached_extractor import CachedFeatureExtractor
from finetune.probe.features.extractor import create_feature_extractor
from finetune.probe.linear_probe import ProbePlan
from finetune.types import Reporter

TAU_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values that tau is chosen from."""

REBALANCED_KEY = "rebalanced"
"""Key of the rebalancing's result in a checkpoint."""


@dataclass(frozen=True, slots=True)
class RebalanceResult:
    """Result of the rebalancing of a classifier.

    Attributes:
        method: "crt" or "tau_norm".
        balanced_accuracy_before: Balanced accuracy of the validation images before, in [0, 1].
        balanced_accuracy_after: Balanced accuracy of the validation images after, in [0, 1].
        tau: The chosen tau of "tau_norm"; None for "crt".
        penalty: The chosen L2 penalty of "crt"; None for "tau_norm".
    """

    method: str
    balanced_accuracy_before: float
    balanced_accuracy_after: float
    tau: float | None = None
    penalty: float | None = None


def is_rebalanced(file: Path) -> bool:
    """Return whether the classifier of a checkpoint has been rebalanced."""
    return REBALANCED_KEY in load_checkpoint_file(file)


def rebalance(
    file: Path, method: str, plan: ProbePlan, *, device: torch.device, reporter: Reporter
) -> RebalanceResult:
    """Rebalance the classifier of a checkpoint; the file is replaced atomically.

    Its logits are then those for a uniform class prior. "crt" fits a new head as a probe does, with
    class-balanced weights and the penalty that cross-validation chooses. "tau_norm" takes the tau
    of the highest balanced accuracy on validation, the smallest in case of a tie.

    Args:
        file: Checkpoint of a run whose classifier is one linear layer.
        method: "crt" or "tau_norm".
        plan: Images of the run and settings of the feature extraction.
        device: Device of the computation.
        reporter: Receiver of progress.

    Raises:
        DataError: A file can no longer be read as before.
        StorageError: The disk is full or fails.
        TrainingError: The features are not finite, or memory does not suffice.
    """
    network = load_model(file).network.to(device)
    extractor = create_feature_extractor(network)
    cached_extractor = CachedFeatureExtractor(
        extractor, plan.extraction, device=device, rendezvous=None, reporter=reporter
    )
    val_features = torch.from_numpy(cached_extractor.extract(plan.val.paths)[0][0][:])
    old_head = extractor.head.weight.detach().cpu(), extractor.head.bias.detach().cpu()
    before = _compute_balanced_accuracy(val_features, old_head, plan)
    if method == "crt":
        views = cached_extractor.extract(plan.train.paths, plan.views)[0]
        labels = plan.train.labels
        weights = _compute_class_balanced_weights(labels)
        fitted = fit_head(
            views, labels, weights, num_classes=len(plan.classes), groups=plan.train.groups
        )
        new_head = fitted.head.weight, fitted.head.bias
        after = _compute_balanced_accuracy(val_features, new_head, plan)
        result = RebalanceResult(method, before, after, penalty=fitted.penalty)
    else:
        heads = {tau: apply_tau_normalisation(*old_head, tau) for tau in TAU_GRID}
        scores = {
            tau: _compute_balanced_accuracy(val_features, head, plan) for tau, head in heads.items()
        }
        best = max(TAU_GRID, key=lambda tau: (scores[tau], -tau))
        new_head = heads[best]
        result = RebalanceResult(method, before, scores[best], tau=best)
    _replace_head(file, find_classifier_parameters(network), new_head, result)
    return result


def apply_tau_normalisation(weight: Tensor, bias: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return a head whose class weight vectors are divided by their norms to the power of tau.

    Kang et al. 2020, section 4.3 (https://arxiv.org/abs/1910.09217): the norms of a classifier's
    weights follow the class sizes. The paper's classifiers have no bias; here it is divided as the
    weights are, so that each logit as a whole is.

    Args:
        weight: Weights, shape (K, D).
        bias: Biases, shape (K,).
        tau: Exponent: 0 changes nothing, 1 makes all norms equal.
    """
    norms = weight.norm(dim=1).clamp(min=1e-12)
    # relative to their geometric mean, so that the logits keep their scale
    scale = (norms.log().mean().exp() / norms) ** tau
    return weight * scale[:, None], bias * scale


def _compute_balanced_accuracy(
    features: Tensor, head: tuple[Tensor, Tensor], plan: ProbePlan
) -> float:
    """Return the balanced accuracy of validation features (N, D) by a head's weight and bias."""
    probabilities = (features @ head[0].T + head[1]).softmax(dim=1)
    targets = torch.from_numpy(plan.val.labels)
    evaluation = evaluate_probabilities(probabilities, targets, classes=plan.classes)
    return evaluation.metrics["balanced_accuracy"]


def _compute_class_balanced_weights(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sample weights that give every class the same total weight, shape (N,)."""
    return 1 / np.bincount(labels)[labels]


def _replace_head(
    file: Path, parameter_names: set[str], head: tuple[Tensor, Tensor], result: RebalanceResult
) -> None:
    """Replace the head's weight and bias, the averaged ones too, and the card's model prior."""
    checkpoint = load_checkpoint_file(file)
    states = [checkpoint["state_dict"], checkpoint.get(AVERAGE_KEY, {}).get("tensors", {})]
    for state in states:
        for name in parameter_names:
            key = f"{NETWORK_PREFIX}{name}"
            if key in state:
                state[key] = head[0] if name.endswith("weight") else head[1]
    if result.tau != 0:  # a tau of 0 leaves the network as it was
        card = ModelCard.from_json(checkpoint[CARD_KEY])
        assert card.priors is not None, "written by this release"
        uniform = normalize_prior([float(frequency > 0) for frequency in card.priors.train])
        priors = replace(card.priors, model=uniform)
        checkpoint[CARD_KEY] = replace(card, priors=priors).to_json()
    checkpoint[REBALANCED_KEY] = {
        "method": result.method,
        "balanced_accuracy_before": result.balanced_accuracy_before,
        "balanced_accuracy_after": result.balanced_accuracy_after,
        "tau": result.tau,
        "penalty": result.penalty,
    }
    save_checkpoint_file(checkpoint, file)
