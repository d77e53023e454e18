"""Model files of other libraries as models of finetune."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from finetune.bundle.model_card import ModelCard
from finetune.bundle.runtimes.hub_folder import load_hub_folder
from finetune.bundle.runtimes.model_metadata import has_preprocessing, parse_card
from finetune.bundle.runtimes.model_paths import find_model_file, is_hub_folder
from finetune.bundle.runtimes.onnx_network import (
    OnnxNetwork,
    open_onnx_session,
    read_onnx_metadata,
)
from finetune.bundle.runtimes.openvino_network import OpenVinoNetwork, read_openvino_metadata
from finetune.bundle.runtimes.photo_network import PhotoNetwork
from finetune.bundle.runtimes.program_network import ProgramNetwork, load_program
from finetune.bundle.verification.file_digests import check_file_digests
from finetune.errors import RunFolderError


def load_other_model(path: Path) -> tuple[nn.Module, ModelCard] | None:
    """Return the network and the card of a model file or folder of another library.

    Args:
        path: File or folder. None is returned for one that is no such model.

    Raises:
        ModelError: The library of a file is not installed, or does not know the model.
        RunFolderError: A file is damaged, or was not written by ``finetune export``.
    """
    file = find_model_file(path)
    if file is not None:
        return load_model_file(file)
    return load_hub_folder(path) if is_hub_folder(path) else None


def is_exported_network(network: nn.Module) -> bool:
    """Return whether a network is a file that another library runs."""
    return isinstance(network, OnnxNetwork | ProgramNetwork | OpenVinoNetwork | PhotoNetwork)


def load_model_file(file: Path) -> tuple[nn.Module, ModelCard]:
    """Return the network of an ``.onnx``, ``.pt2`` or ``.xml`` file, and its model card.

    The network runs on the CPU by the library of the file.

    Raises:
        ModelError: The library is not installed, or cannot read the file.
        RunFolderError: The file was not written by ``finetune export``, or it is damaged, or it is
            not the one whose SHA-256 the export has recorded.
    """
    check_file_digests(file)
    network, metadata = _open(file)
    card = parse_card(metadata, name=str(file))
    takes_photos = has_preprocessing(metadata, name=str(file))
    if takes_photos:
        network = PhotoNetwork(network, is_multi_label=card.is_multi_label)
    channels, height, width = card.spec.input_size
    shape = (1, height, width, channels) if takes_photos else (1, channels, height, width)
    example = torch.zeros(shape, dtype=torch.uint8 if takes_photos else torch.float32)
    try:
        with torch.inference_mode():
            output = tuple(network(example).shape)
    except Exception as error:  # runtimes raise errors of any type
        reason = str(error).strip().partition("\n")[0]
        raise RunFolderError(
            f"{file} does not accept the images that its metadata describe ({reason}). Export the "
            f"model again."
        ) from error
    if output != (1, len(card.classes)):
        raise RunFolderError(
            f"{file} gives an output of shape {output} for an image, and its metadata name "
            f"{len(card.classes)} classes. Export the model again."
        )
    return network.eval(), card


def _open(file: Path) -> tuple[nn.Module, Mapping[str, str]]:
    """Return the network of a file and its metadata."""
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        session = open_onnx_session(file)
        return OnnxNetwork(session), read_onnx_metadata(session)
    if suffix == ".pt2":
        return load_program(file)
    return OpenVinoNetwork(file), read_openvino_metadata(file)
