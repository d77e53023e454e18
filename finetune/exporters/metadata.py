"""Metadata inside exported files: the model card, and single values that other programs read."""

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
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
        **_list_measured(card),
        "precision": "fp32",
        "versions": {"python": platform.python_version(), **collect_versions()},
        "license": _describe_licenses(bundle),
    }
    if card.thresholds is not None:
        values["thresholds"] = list(card.thresholds)
    if card.bit_depth != 8:
        values["bit_depth"] = card.bit_depth
    return {key: _to_text(value) for key, value in values.items()}


def describe_smaller(
    card: ModelCard,
    *,
    precision: str,
    metrics: Mapping[str, float],
    name: str,
    num_images: int,
    accuracy_interval: tuple[float, float] | None,
) -> ModelCard:
    """Return the card of a file in fewer bits, with what was measured of it and nothing else.

    The metrics of the model in float32, also those of other splits, are not those of the file.

    Args:
        card: Card of the same file in float32.
        precision: "int8" or "fp16".
        metrics: Metrics of the file; empty for images without labels.
        name: Split of the images, or another name.
        num_images: Number of images that the file was measured on.
        accuracy_interval: 95% interval of the accuracy; None without an accuracy.
    """
    details: dict[str, Any] = {"num_images": num_images}
    if accuracy_interval is not None:
        details["accuracy_interval"] = list(accuracy_interval)
    measured = {
        "precision": precision,
        "metrics": {name: dict(metrics)} if metrics else {},
        "evaluations": {name: details} if metrics else {},
    }
    return replace(card, facts={**card.facts, **measured})


def update_metadata(metadata: Mapping[str, str], card: ModelCard) -> dict[str, str]:
    """Return the metadata of a file with another card, see ``describe_smaller``."""
    tree = json.loads(metadata[CARD_KEY])
    values = {
        CARD_KEY: {**card.to_json(), PREPROCESSING_KEY: tree[PREPROCESSING_KEY]},
        "precision": card.facts["precision"],
        **_list_measured(card),
    }
    return {**metadata, **{key: _to_text(value) for key, value in values.items()}}


def _list_measured(card: ModelCard) -> dict[str, Any]:
    """Return the metrics by split, and the number of images of each."""
    evaluations: Mapping[str, Mapping[str, Any]] = card.facts.get("evaluations") or {}
    return {
        "metrics": card.facts.get("metrics", {}),
        "num_metric_images": {
            split: details["num_images"]
            for split, details in evaluations.items()
            if "num_images" in details
        },
    }


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
