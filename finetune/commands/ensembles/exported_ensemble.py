"""Metrics of an ensemble, or of a network with averaged weights, that is exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import ModelBundle
from finetune.commands.evaluate import EvaluationOptions, evaluate_loaded
from finetune.errors import ConfigError, DataError
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
