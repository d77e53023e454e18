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
from finetune.bundle.model_card import CARD_KEY, Card
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.priors import shares_of
from finetune.models.groups import classifier_parameters
from finetune.models.head import linear_head
from finetune.probe.cross_validation import fit_head
from finetune.probe.extraction import Features
from finetune.probe.extractor import Answers
from finetune.probe.linear_probe import ProbePlan
from finetune.probe.tau_norm import TAUS, tau_normalised
from finetune.system.files import atomic_file
from finetune.types import Reporter

REBALANCED_KEY = "rebalanced"
"""Where a checkpoint says what was done to its classifier."""

_PREFIX = "classifier.network."


@dataclass(frozen=True, slots=True)
class Rebalanced:
    """What was done to a classifier.

    Attributes:
        way: "crt" or "tau_norm".
        before: Balanced accuracy of the validation images before, in [0, 1].
        after: After it.
        tau: Of "tau_norm".
        penalty: Of "crt".
    """

    way: str
    before: float
    after: float
    tau: float | None = None
    penalty: float | None = None


def is_rebalanced(file: Path) -> bool:
    """Tell whether the classifier of a checkpoint was made anew already."""
    return REBALANCED_KEY in torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def rebalance(
    file: Path, way: str, plan: ProbePlan, *, device: torch.device, reporter: Reporter
) -> Rebalanced:
    """Give the model of a checkpoint another classifier; the file is replaced whole.

    Its logits then count as those for classes of equal size. "crt" fits it as a probe does, to all
    classes alike, with the penalty that cross-validation chooses. "tau_norm" takes the tau of the
    largest balanced accuracy on validation, the smallest of several.

    Args:
        file: A checkpoint of a run, whose classifier is one linear layer.
        way: "crt" or "tau_norm".
        plan: The run's images, and how a network is asked about them.
        device: Where.
        reporter: Told of the progress.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
        TrainingError: The features are no numbers, or the memory does not suffice.
    """
    network = load_model(file).network.to(device)
    head = linear_head(network)
    assert head is not None, "looked for by who plans"
    features = Features(
        Answers(network, head), plan.features, device=device, met=None, reporter=reporter
    )
    val = features.of(plan.val.paths)[0][0]
    seen = torch.from_numpy(val[:])
    old = head.weight.detach().cpu(), head.bias.detach().cpu()
    before = _balanced(seen, old, plan)
    if way == "crt":
        train = features.of(plan.train.paths, plan.views)[0]
        labels = plan.train.labels
        fitted = fit_head(train, labels, _all_alike(labels), num_classes=len(plan.classes))
        new = fitted.head.weight, fitted.head.bias
        found = Rebalanced(way, before, _balanced(seen, new, plan), penalty=fitted.penalty)
    else:
        heads = {tau: tau_normalised(*old, tau) for tau in TAUS}
        scores = {tau: _balanced(seen, heads[tau], plan) for tau in TAUS}
        tau = max(TAUS, key=lambda tried: (scores[tried], -tried))
        new = heads[tau]
        found = Rebalanced(way, before, scores[tau], tau=tau)
    _replace_head(file, classifier_parameters(network), new, found)
    return found


def _balanced(features: Tensor, head: tuple[Tensor, Tensor], plan: ProbePlan) -> float:
    probabilities = (features @ head[0].T + head[1]).softmax(dim=1)
    target = torch.from_numpy(plan.val.labels)
    found = evaluate_probabilities(probabilities, target, classes=plan.classes)
    return found.metrics["balanced_accuracy"]


def _all_alike(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights that give every class the same share of the loss, shape (N,)."""
    return 1 / np.bincount(labels)[labels]


def _replace_head(
    file: Path, names: set[str], head: tuple[Tensor, Tensor], found: Rebalanced
) -> None:
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    tables = [checkpoint["state_dict"], checkpoint.get(AVERAGE_KEY, {}).get("tensors", {})]
    for table in tables:
        for name in names:
            if f"{_PREFIX}{name}" in table:
                table[f"{_PREFIX}{name}"] = head[0] if name.endswith("weight") else head[1]
    if found.tau != 0:  # else the network is what it was
        card = Card.from_json(checkpoint[CARD_KEY])
        assert card.priors is not None, "written by this release"
        alike = shares_of([float(share > 0) for share in card.priors.train])
        priors = replace(card.priors, model=alike)
        checkpoint[CARD_KEY] = replace(card, priors=priors).as_json()
    checkpoint[REBALANCED_KEY] = {
        key: getattr(found, key) for key in ("way", "before", "after", "tau", "penalty")
    }
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        torch.save(checkpoint, stream)
