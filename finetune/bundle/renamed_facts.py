"""Present names of the facts in model cards that version 0.1 wrote."""

from collections.abc import Mapping
from typing import Any

_RENAMED_FACTS = {"mirrored": "flipped", "mirrored_by": "flipped_by"}
_RENAMED_EVALUATION_KEYS = {"means_are_over": "num_classes_averaged"}
_RENAMED_PRIOR_KEYS = {
    "asked": "requested",
    "answers_are_for": "target_prior",
    "shares": "class_prior",
}
_RENAMED_CLASS_KEYS = {"predicted": "num_predicted"}
_RENAMED_CALIBRATION_KEYS = {"fitted": "fitted_temperature"}
_RANKED_BY = {"training images": "train_images", "images here": "eval_images"}


def rename_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a model card under their present names.

    Args:
        facts: Facts as stored; present names and unknown ones are kept as they are.
    """
    renamed = _rename(facts, _RENAMED_FACTS)
    if isinstance(evaluations := renamed.get("evaluations"), Mapping):
        renamed["evaluations"] = {
            split: _rename_evaluation(details) for split, details in evaluations.items()
        }
    if isinstance(calibration := renamed.get("calibration"), Mapping):
        renamed["calibration"] = _rename(calibration, _RENAMED_CALIBRATION_KEYS)
    return renamed


def _rename_evaluation(details: Mapping[str, Any]) -> dict[str, Any]:
    renamed = _rename(details, _RENAMED_EVALUATION_KEYS)
    if isinstance(prior := renamed.get("prior"), Mapping):
        renamed["prior"] = _rename(prior, _RENAMED_PRIOR_KEYS)
    if isinstance(per_class := renamed.get("per_class"), Mapping):
        renamed["per_class"] = {
            name: _rename(stats, _RENAMED_CLASS_KEYS) for name, stats in per_class.items()
        }
    if isinstance(rarest := renamed.get("rarest_third"), Mapping):
        rarest = _rename(rarest, {"by": "ranked_by"})
        ranked_by = rarest.get("ranked_by")
        renamed["rarest_third"] = {**rarest, "ranked_by": _RANKED_BY.get(str(ranked_by), ranked_by)}
    return renamed


def _rename(tree: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in tree.items()}
