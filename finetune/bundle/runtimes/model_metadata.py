"""Metadata in the model files of other libraries, from which finetune knows their model card."""

import json
from collections.abc import Mapping
from typing import Any

from finetune.bundle.model_card import CARD_KEY, ModelCard
from finetune.errors import RunFolderError

PREPROCESSING_KEY = "includes_preprocessing"
"""Key beside those of the card: whether the file takes photos."""


def parse_card(metadata: Mapping[str, str], *, name: str) -> ModelCard:
    """Return the model card in the metadata of a file.

    Args:
        metadata: Texts by key.
        name: Path of the file for messages.

    Raises:
        RunFolderError: There is none, or it is damaged.
    """
    tree = _read_tree(metadata, name)
    try:
        return ModelCard.from_json(tree)
    except RunFolderError as error:
        raise RunFolderError(f"{name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{name} is damaged: the model card in its metadata is invalid ({error!r}). Export the "
            f"model again."
        ) from error


def has_preprocessing(metadata: Mapping[str, str], *, name: str) -> bool:
    """Return whether a file takes photos and gives probabilities.

    Raises:
        RunFolderError: There is no model card in the metadata, or it is damaged.
    """
    return bool(_read_tree(metadata, name).get(PREPROCESSING_KEY, False))


def _read_tree(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return the JSON of the card.

    Raises:
        RunFolderError: There is none, or it is damaged.
    """
    text = metadata.get(CARD_KEY)
    if text is None:
        raise RunFolderError(
            f"{name} was not written by finetune export: its metadata have no key '{CARD_KEY}' "
            f"with the classes and the preprocessing, without which its outputs have no meaning. "
            f"Export the model by finetune export."
        )
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{name} is damaged: the model card in its metadata is no JSON ({error}). Export the "
            f"model again."
        ) from error
    return tree if isinstance(tree, dict) else {}
