"""Origin of the weights that a run begins with, from what their files and timm state."""

from dataclasses import replace
from pathlib import Path

from finetune.bundle.model_card import ModelCard, find_bundle, read_card_json
from finetune.bundle.model_page.weights_origin import (
    WeightsOrigin,
    describe_hub_weights,
    find_weights_origin,
)
from finetune.bundle.runtimes.hub_origin import find_folder_origin
from finetune.bundle.runtimes.model_paths import HUB_PREFIXES
from finetune.errors import RunFolderError
from finetune.models.pretrained.hub import find_hub_weights

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights that are part of the folder of a model."""


def describe_weights(weights: str, backbone: str) -> WeightsOrigin:
    """Return the origin of the weights that a run begins with.

    Weights of an own model have the origin of that model. Those in a folder of timm, or of a
    repository of the hub, have the licence that its files state.

    Args:
        weights: Value of ``model.weights``: "hub", "random", or a file or folder.
        backbone: Value of ``model.backbone``.
    """
    if weights == "random":
        return WeightsOrigin("random")
    if weights == "hub":
        return _describe_hub(backbone)
    path = Path(weights).expanduser()
    if path.is_file():
        if path.name not in _FOLDER_FILES:
            return WeightsOrigin("file")
        path = path.parent
    return replace(_read_origin(path), kind="file")


def _describe_hub(backbone: str) -> WeightsOrigin:
    """Return the origin of weights of the hub; of a repository that timm does not know, its own."""
    origin = describe_hub_weights(backbone)
    found = find_hub_weights(backbone) if backbone.startswith(HUB_PREFIXES) else None
    file = None if found is None else found.find_cached()
    if file is None:
        return origin
    stated = find_folder_origin(file.parent)
    return origin if stated is None else replace(origin, license=stated.license)


def _read_origin(path: Path) -> WeightsOrigin:
    """Return the origin of the weights in the folder of a model; unknown where nothing states it.

    Files that are damaged are reported where the weights are read.
    """
    folder = find_bundle(path)
    if folder is None:
        origins = map(find_folder_origin, (path / "bundle", path))
        return next(filter(None, origins), WeightsOrigin("file"))
    try:
        tree = read_card_json(folder)
        return find_weights_origin(ModelCard.from_json(tree))
    except (RunFolderError, KeyError, TypeError, ValueError, AttributeError):
        return WeightsOrigin("file")
