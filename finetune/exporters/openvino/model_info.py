"""Metadata of a model file of OpenVINO (``rt_info``), for finetune and for programs of OpenVINO."""

from collections.abc import Mapping
from typing import Any

from finetune.bundle.model_card import ModelCard

METADATA_SECTION = "finetune"
"""Section of ``rt_info`` with the keys of ``build_metadata``."""

MODEL_INFO_SECTION = "model_info"
"""Section that OpenVINO's Model API reads."""

_RESIZE_TYPES = {"center": "crop", "squash": "standard", "border": "fit_to_window_letterbox"}
_MAX_LEVEL = 255


def write_model_info(model: Any, card: ModelCard, metadata: Mapping[str, str]) -> None:
    """Write the metadata of a model into its ``rt_info``.

    Args:
        model: Model of OpenVINO.
        card: Card of what it computes.
        metadata: Texts by key, see ``build_metadata``.
    """
    for key, text in metadata.items():
        model.set_rt_info(text, [METADATA_SECTION, key])
    for key, text in build_model_info(card, takes_photos=metadata["output"] != "logits").items():
        model.set_rt_info(text, [MODEL_INFO_SECTION, key])


def build_model_info(card: ModelCard, *, takes_photos: bool) -> dict[str, str]:
    """Return the entries of ``model_info`` (https://openvinotoolkit.github.io/model_api).

    Its labels are separated by blanks, so that those in a name become underscores. Its resizing has
    no ``crop_pct``: ``resize_type`` is the nearest. There is no ``reverse_input_channels``, which
    depends on the order of the images that the program is given: the model takes RGB.

    Args:
        card: Card of what the model computes.
        takes_photos: Whether the preprocessing is part of it.
    """
    spec = card.spec
    info = {
        "model_type": "Classification",
        "labels": " ".join("_".join(name.split()) for name in card.classes),
        "multilabel": str(card.is_multi_label),
        "output_raw_scores": "True",
    }
    if takes_photos:
        return info
    return info | {
        "resize_type": _RESIZE_TYPES[spec.crop_mode],
        "mean_values": _format_levels(spec.mean),
        "scale_values": _format_levels(spec.std),
    }


def _format_levels(values: tuple[float, ...]) -> str:
    """Return fractions as levels of 8 bits, separated by blanks."""
    return " ".join(f"{_MAX_LEVEL * value:.7g}" for value in values)
