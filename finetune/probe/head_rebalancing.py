"""The classifier of a trained network, made anew or evened out for classes of unequal size.

Kang et al. 2020 (https://arxiv.org/abs/1910.09217): a network learns best from images as they are,
and only its classifier suffers from the sizes of the classes. Both ways ask the network about each
image once more, as a probe does.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.bundle.bundle import AVERAGE_KEY, load_model
from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.priors import normalize_prior
from finetune.models.groups import find_classifier_parameters
from finetune.models.head import find_linear_head
from finetune.probe.cross_validation import fit_head
from finetune.probe.extraction import CachedFeatureExtractor
from finetune.probe.extractor import FeatureExtractor
from finetune.probe.linear_probe import ProbePlan
from finetune.probe.tau_norm import TAU_GRID, apply_tau_normalisation
from finetune.system.files import write_file_atomically
from finetune.types import Reporter

REBALANCED_KEY = "rebalanced"
"""Where a checkpoint says what was done to its classifier."""

_STATE_DICT_PREFIX = "classifier.network."


@dataclass(frozen=True, slots=True)
class RebalanceResult:
    """What was done to a classifier.

    Attributes:
        method: "crt" or "tau_norm".
        balanced_accuracy_before: Balanced accuracy of the validation images before, in [0, 1].
        balanced_accuracy_after: After it.
        tau: Of "tau_norm".
        penalty: Of "crt".
    """

    method: str
    balanced_accuracy_before: float
    balanced_accuracy_after: float
    tau: float | None = None
    penalty: float | None = None


def is_rebalanced(file: Path) -> bool:
    """Tell whether the classifier of a checkpoint was made anew already."""
    return REBALANCED_KEY in torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def rebalance(
    file: Path, method: str, plan: ProbePlan, *, device: torch.device, reporter: Reporter
) -> RebalanceResult:
    """Give the model of a checkpoint another classifier; the file is replaced whole.

    Its logits then count as those for classes of equal size. "crt" fits it as a probe does, to all
    classes alike, with the penalty that cross-validation chooses. "tau_norm" takes the tau of the
    largest balanced accuracy on validation, the smallest of several.

    Args:
        file: A checkpoint of a run, whose classifier is one linear layer.
        method: "crt" or "tau_norm".
        plan: The run's images, and how a network is asked about them.
        device: Where.
        reporter: Told of the progress.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
        TrainingError: The features are no numbers, or the memory does not suffice.
    """
    network = load_model(file).network.to(device)
    head = find_linear_head(network)
    assert head is not None, "looked for by who plans"
    features = CachedFeatureExtractor(
        FeatureExtractor(network, head),
        plan.extraction,
        device=device,
        rendezvous=None,
        reporter=reporter,
    )
    val = features.extract(plan.val.paths)[0][0]
    seen = torch.from_numpy(val[:])
    old = head.weight.detach().cpu(), head.bias.detach().cpu()
    before = _compute_balanced_accuracy(seen, old, plan)
    if method == "crt":
        train = features.extract(plan.train.paths, plan.views)[0]
        labels = plan.train.labels
        fitted = fit_head(
            train, labels, _compute_class_balanced_weights(labels), num_classes=len(plan.classes)
        )
        new = fitted.head.weight, fitted.head.bias
        found = RebalanceResult(
            method, before, _compute_balanced_accuracy(seen, new, plan), penalty=fitted.penalty
        )
    else:
        heads = {tau: apply_tau_normalisation(*old, tau) for tau in TAU_GRID}
        scores = {tau: _compute_balanced_accuracy(seen, heads[tau], plan) for tau in TAU_GRID}
        tau = max(TAU_GRID, key=lambda tried: (scores[tried], -tried))
        new = heads[tau]
        found = RebalanceResult(method, before, scores[tau], tau=tau)
    _replace_head(file, find_classifier_parameters(network), new, found)
    return found


def _compute_balanced_accuracy(
    features: Tensor, head: tuple[Tensor, Tensor], plan: ProbePlan
) -> float:
    probabilities = (features @ head[0].T + head[1]).softmax(dim=1)
    target = torch.from_numpy(plan.val.labels)
    found = evaluate_probabilities(probabilities, target, classes=plan.classes)
    return found.metrics["balanced_accuracy"]


def _compute_class_balanced_weights(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights that give every class the same share of the loss, shape (N,)."""
    return 1 / np.bincount(labels)[labels]


def _replace_head(
    file: Path, parameter_names: set[str], head: tuple[Tensor, Tensor], result: RebalanceResult
) -> None:
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    tables = [checkpoint["state_dict"], checkpoint.get(AVERAGE_KEY, {}).get("tensors", {})]
    for table in tables:
        for name in parameter_names:
            if f"{_STATE_DICT_PREFIX}{name}" in table:
                table[f"{_STATE_DICT_PREFIX}{name}"] = (
                    head[0] if name.endswith("weight") else head[1]
                )
    if result.tau != 0:  # else the network is what it was
        card = ModelCard.from_json(checkpoint[CARD_KEY])
        assert card.priors is not None, "written by this release"
        alike = normalize_prior([float(share > 0) for share in card.priors.train])
        priors = replace(card.priors, model=alike)
        checkpoint[CARD_KEY] = replace(card, priors=priors).to_json()
    checkpoint[REBALANCED_KEY] = {
        "method": result.method,
        "balanced_accuracy_before": result.balanced_accuracy_before,
        "balanced_accuracy_after": result.balanced_accuracy_after,
        "tau": result.tau,
        "penalty": result.penalty,
    }
    with write_file_atomically(file) as temporary, temporary.open("wb") as stream:
        torch.save(checkpoint, stream)
