"""Measurements of an ensemble that is exported: its metrics, and the predictions of its members."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.bundle.bundle import ModelBundle, load_model
from finetune.bundle.ensemble_card import get_class_order, get_member_folder
from finetune.bundle.model_card import ModelCard
from finetune.commands.evaluate import EvaluationOptions, evaluate_loaded
from finetune.errors import ConfigError, DataError
from finetune.exporters.parity import predict_with_timm
from finetune.exporters.timm_format import explain_refusal
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import details_to_json, metrics_to_json
from finetune.types import Reporter, Split


def evaluate_held_out(
    bundle: ModelBundle, paths: Sequence[Path], reporter: Reporter
) -> dict[str, Any]:
    """Return the metrics of a combined model on held-out images of the runs, as card facts.

    Only images that no member was trained on are evaluated; without any, the facts are empty, with
    a warning.

    Args:
        bundle: Ensemble, or network with averaged weights.
        paths: Paths of the models that it is made of.
        reporter: Receives progress and the warning.
    """
    metrics: dict[str, Any] = {}
    evaluations: dict[str, Any] = {}
    reasons = []
    for split in (Split.VAL, Split.TEST):
        options = EvaluationOptions(split=split)
        try:
            result = evaluate_loaded(bundle, paths, options=options, reporter=Reporter())
        except (ConfigError, DataError) as error:
            reasons.append(str(error))
            continue
        metrics[split.value] = metrics_to_json(result.evaluation)
        evaluations[split.value] = {
            "prior": dict(result.prior),
            **details_to_json(result.evaluation),
            "validation_choices": list(result.validation_choices),
        }
    if not metrics:
        reporter.warn(f"the combined model was not evaluated: {reasons[0]}")
    return {"metrics": metrics, "evaluations": evaluations}


def is_timm_model(card: ModelCard) -> bool:
    """Return whether timm alone can read a model."""
    return explain_refusal(card.backbone, card.head_name) is None


def predict_members(output: Path, exported: ModelBundle, images: Sequence[Path]) -> Tensor:
    """Return the weighted mean of the predictions of the members on disk, shape (N, K).

    timm alone predicts with those that it can read, and finetune with the others.

    Args:
        output: Folder of the exported ensemble.
        exported: The ensemble.
        images: Image files, shape (N,).

    Raises:
        ModelError: timm reads other class names.
    """
    mean = torch.zeros(len(images), len(exported.card.classes))
    members = zip(exported.members, exported.weights, strict=True)
    for number, (member, weight) in enumerate(members):
        probabilities = _predict_member(output / get_member_folder(number), member.card, images)
        mean += weight * probabilities[:, get_class_order(member.card, exported.card.classes)]
    return mean


def _predict_member(folder: Path, card: ModelCard, images: Sequence[Path]) -> Tensor:
    if not is_timm_model(card):
        return Predictor(load_model(folder), device="cpu").predict_proba(images)
    return predict_with_timm(
        folder,
        images,
        classes=card.classes,
        temperature=card.temperature,
        logit_shift=card.shift,
        options=card.read_options,
        is_multi_label=card.is_multi_label,
    )
