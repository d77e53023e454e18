"""Statistics of training and validation images from which answers of a model are rejected.

``rejection.safetensors`` in a bundle has the normalized features of a sample of the training
images, the distances of the validation images to them, and how probable and how right the answers
of the validation images were. Its header names the weights that it belongs to.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from finetune.bundle.model_card import find_bundle, read_card_json
from finetune.errors import RunFolderError
from finetune.evaluation.rejection.feature_distance import NUM_NEIGHBORS
from finetune.system.files import write_file_atomically

FILE_NAME = "rejection.safetensors"
_FORMAT = 1
_METADATA_KEY = "finetune"
_KEYS = ("features", "distances", "probabilities", "is_correct")


@dataclass(frozen=True, slots=True)
class RejectionStatistics:
    """Images that thresholds are chosen on, and those that distances are measured to.

    Attributes:
        features: Normalized features of training images, float16, shape (M, D).
        distances: Distance of each validation image to them, float32, shape (N,).
        probabilities: Probability of the most probable class of each validation image, as the model
            card calibrates it, float32, shape (N,); empty for a multi-label model.
        is_correct: Whether that class is right, bool, shape (N,) or empty.
        num_neighbors: Which nearest training image the distance is measured to.
    """

    features: NDArray[np.float16]
    distances: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    is_correct: NDArray[np.bool_]
    num_neighbors: int = NUM_NEIGHBORS


def save_rejection_statistics(statistics: RejectionStatistics, folder: Path) -> None:
    """Write the statistics of the model of a bundle folder into it, atomically.

    Raises:
        RunFolderError: The bundle is missing or damaged.
        StorageError: The disk is full, read-only or fails.
    """
    tensors = {key: np.ascontiguousarray(getattr(statistics, key)) for key in _KEYS}
    origin = {
        "format": _FORMAT,
        "num_neighbors": statistics.num_neighbors,
        "model_sha256": read_card_json(folder)["sha256"],
        "content_sha256": _compute_digest(tensors),
    }
    # one entry: safetensors writes several in another order each time
    metadata = {_METADATA_KEY: json.dumps(origin)}
    with write_file_atomically(folder / FILE_NAME) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def has_rejection_statistics(path: Path) -> bool:
    """Return whether the bundle of a run folder or bundle folder has valid statistics."""
    try:
        load_rejection_statistics(path)
    except RunFolderError:
        return False
    return True


def load_rejection_statistics(path: Path) -> RejectionStatistics:
    """Return the statistics of the model in a run folder or bundle folder.

    Raises:
        RunFolderError: There are none, or they are damaged or of another model.
    """
    folder = find_bundle(path)
    if folder is None:
        raise RunFolderError(
            f"{path} has no statistics for --reject, which only finished runs and their bundles "
            f"have. Name a run folder or a bundle folder."
        )
    file = folder / FILE_NAME
    if not file.is_file():
        raise RunFolderError(
            f"{folder} has no {FILE_NAME}, which --reject needs: the run had no validation images "
            f"or rejection.enabled=off, it is of an older release, or the model was combined or "
            f"exported. {_advise(folder)}"
        )
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = json.loads((opened.metadata() or {})[_METADATA_KEY])
            tensors = {key: opened.get_tensor(key) for key in _KEYS}
        if metadata["format"] != _FORMAT:
            raise ValueError(f"format {metadata['format']} is of a newer release")
        if metadata["content_sha256"] != _compute_digest(tensors):
            raise ValueError("its SHA-256 is another one than it states")
        if metadata["model_sha256"] != read_card_json(folder)["sha256"]:
            raise ValueError("it is that of another model")
        statistics = RejectionStatistics(**tensors, num_neighbors=int(metadata["num_neighbors"]))
        _check_shapes(statistics)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RunFolderError(f"{file} cannot be used: {error}. {_advise(folder)}") from error
    return statistics


def _advise(folder: Path) -> str:
    """Return how the model of a bundle folder gets statistics: ``evaluate`` adds them to runs."""
    run = folder.parent
    if folder.name != "bundle" or not (run / "manifest.csv").is_file():
        return (
            f"{folder} is not in a run folder, so that nothing can be added: name the run "
            f"that the model is of, or its bundle."
        )
    return (
        f"If the images of the run are still there, finetune evaluate {shlex.quote(str(run))} "
        f"--reject writes it; else train the model again."
    )


def _check_shapes(statistics: RejectionStatistics) -> None:
    """Raise ValueError for tensors of other shapes than they have."""
    is_whole = (
        statistics.features.ndim == 2
        and len(statistics.features) > 0
        and statistics.distances.ndim == 1
        and statistics.probabilities.shape == statistics.is_correct.shape
        and statistics.probabilities.shape in (statistics.distances.shape, (0,))
        and statistics.num_neighbors > 0
    )
    if not is_whole:
        raise ValueError("its tensors have other shapes than they should")


def _compute_digest(tensors: dict[str, NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for key in _KEYS:
        tensor = tensors[key]
        digest.update(f"{key}\0{tensor.dtype}\0{tensor.shape}\0".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
