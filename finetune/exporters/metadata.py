"""Metadata inside exported files: the model card, and single values that other programs read."""

import json
import platform
from typing import Any, Literal

from finetune.bundle.bundle import ModelBundle, collect_versions
from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.bundle.model_page.weights_origin import find_weights_origin
from finetune.bundle.runtimes.model_metadata import PREPROCESSING_KEY

Output = Literal["logits", "probabilities"]


def build_metadata(bundle: ModelBundle, card: ModelCard, *, output: Output) -> dict[str, str]:
    """Return the metadata of an exported file; values that are no text are JSON.

    ``finetune`` is the card, with which finetune loads the file as a model.

    Args:
        bundle: Exported model.
        card: Card of what the file computes, see ``describe_graph``.
        output: "logits" of normalised pixels, or "probabilities" of photos.
    """
    spec = card.spec
    takes_photos = output == "probabilities"
    values: dict[str, Any] = {
        CARD_KEY: {**card.to_json(), PREPROCESSING_KEY: takes_photos},
        "names": list(card.classes),
        "output": output,
        "input": "photos uint8 BHWC" if takes_photos else "normalised pixels float32 BCHW",
        "activation": "sigmoid" if card.is_multi_label else "softmax",
        "input_size": list(spec.input_size),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": spec.crop_mode,
        "temperature": _get_temperature(bundle.card),
        "metrics": card.facts.get("metrics", {}),
        "versions": {"python": platform.python_version(), **collect_versions()},
        "license": _describe_licenses(bundle),
    }
    if card.thresholds is not None:
        values["thresholds"] = list(card.thresholds)
    if card.bit_depth != 8:
        values["bit_depth"] = card.bit_depth
    return {key: _to_text(value) for key, value in values.items()}


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _get_temperature(card: ModelCard) -> float:
    """Return the temperature that the outputs include, here or in the head of the model."""
    return card.temperature * float(card.facts.get("temperature_in_head", 1.0))


def _describe_licenses(bundle: ModelBundle) -> str:
    """Return the licences of the weights that training began with; "unknown" where none is known.

    Weights from random numbers have none.
    """
    origins = [find_weights_origin(member.card) for member in bundle.members or (bundle,)]
    names = [origin.license or "unknown" for origin in origins if origin.kind != "random"]
    return ", ".join(dict.fromkeys(names)) or "none"
