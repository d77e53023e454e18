"""Bundle: a trained model as a folder of safetensors and JSON, loaded without training code.

``config.json`` and ``model.safetensors`` are timm's own format, so that
``timm.create_model("local-dir:FOLDER", pretrained=True)`` returns the same network;
``finetune.json`` holds the model card, which timm's format has no field for. The bundle of an
ensemble, see ``finetune.bundle.ensemble``, has such a folder for each of its members.
"""

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from finetune.bundle.checkpoint_file import AVERAGE_KEY, NETWORK_PREFIX, load_checkpoint_file
from finetune.bundle.ensemble_card import (
    combine_cards,
    is_ensemble,
    normalize_weights,
    parse_ensemble,
)
from finetune.bundle.model_card import (
    CARD_KEY,
    ModelCard,
    find_bundle,
    read_card_json,
)
from finetune.bundle.model_page.render_page import render_readme
from finetune.bundle.model_page.weights_origin import find_weights_origin, keep_known_origin
from finetune.bundle.runtimes.hub_download import download_model
from finetune.bundle.runtimes.model_paths import MODEL_KINDS, is_hub_name
from finetune.bundle.runtimes.runtime_models import load_other_model
from finetune.bundle.stored_network import build_stored_network
from finetune.bundle.verification.card_digest import add_digests, check_digests
from finetune.bundle.verification.file_digests import compute_sha256
from finetune.bundle.verification.file_kind import explain_other_folder, explain_other_kind
from finetune.bundle.verification.pickle_refusal import explain_pickle
from finetune.bundle.verification.timm_config_check import check_timm_config
from finetune.errors import ModelError, RunFolderError
from finetune.lookup import explain_missing
from finetune.models.pretrained.safetensors_file import check_no_pickle
from finetune.system.files import write_folder_atomically
from finetune.system.given_paths import exists
from finetune.system.run_paths import find_whole_folder

_PACKAGES = {
    "finetune": "finetune-vision",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "pytorch-lightning": "pytorch-lightning",
    "albumentations": "albumentations",
}
"""Key in ``finetune.json`` to the name of the distribution."""


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """Network in eval mode with its model card, or an ensemble of such models.

    Attributes:
        network: Network that maps normalised images (B, 3, H, W) to logits (B, K). That of an
            ensemble only holds the networks of its members.
        card: Classes, preprocessing and origin of the model.
        source: Path that the model was loaded from.
        members: Models whose mean an ensemble is, each with its own card; empty for one network.
            Their classes may be in another order than those of the ensemble.
        weights: Weight of each member; they sum to 1.
    """

    network: nn.Module
    card: ModelCard
    source: Path
    members: tuple["ModelBundle", ...] = ()
    weights: tuple[float, ...] = ()


def save_bundle(network: nn.Module, card: ModelCard, folder: Path) -> None:
    """Write a bundle atomically, replacing an existing one.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    network = network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    spec = card.spec
    preprocessing = {
        "input_size": list(spec.input_size),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": spec.crop_mode,
        # the pretrained weights' recommended test size no longer applies
        "test_input_size": None,
        "test_crop_pct": None,
        # timm's own entry is that of its default weights, whichever were used
        "license": find_weights_origin(card).license,
    }
    with write_folder_atomically(folder) as temporary:
        save_for_hf(
            network,
            str(temporary),
            model_config={"pretrained_cfg": preprocessing, "label_names": list(card.classes)},
            model_args=dict(card.model_args),
            safe_serialization=True,
        )
        file = temporary / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["pretrained_cfg"] = keep_known_origin(config["pretrained_cfg"], card)
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")
        tree = {
            **card.to_json(),
            "sha256": compute_sha256(temporary / "model.safetensors"),
            "versions": {"python": platform.python_version(), **collect_versions()},
        }
        (temporary / "finetune.json").write_text(format_card_json(tree), encoding="utf-8")
        (temporary / "README.md").write_text(render_readme(card), encoding="utf-8")


def combine_models(
    models: Sequence[ModelBundle],
    *,
    weights: Sequence[float] | None = None,
    facts: Mapping[str, Any] | None = None,
    source: Path | None = None,
) -> ModelBundle:
    """Return the weighted mean of the probabilities of several models as one model.

    Its classes are in the order of the first model. The members of an ensemble take its place.

    Args:
        models: Models of the same classes.
        weights: Weight of each model; None weights all alike. They are divided by their sum.
        facts: Facts on the card besides those that follow from the members, such as metrics.
        source: Path of the result; None for that of the first model.

    Raises:
        ModelError: The models do not have the same classes.
        ValueError: The weights are invalid.
    """
    pairs = [
        (member, weight * share)
        for model, weight in zip(models, normalize_weights(weights, len(models)), strict=True)
        for member, share in zip(model.members or (model,), model.weights or (1.0,), strict=True)
    ]
    members = tuple(member for member, _ in pairs)
    shares = normalize_weights([share for _, share in pairs], len(pairs))
    names = [str(member.source) for member in members]
    card = combine_cards([m.card for m in members], shares, names=names, facts=facts)
    network = nn.ModuleList([member.network for member in members])
    return ModelBundle(network, card, source or models[0].source, members, shares)


def load_model(path: Path) -> ModelBundle:
    """Return the model of a run folder, a bundle folder, a checkpoint or an exported file.

    A run folder yields its bundle, which may be an ensemble, or its best checkpoint while it is
    still training. A model file of ONNX, torch.export or OpenVINO, or the folder with it, is run
    by its own library on the CPU. A folder of timm or transformers is a model, too;
    ``hf-hub:user/name`` downloads it.

    Raises:
        ModelError: It is a model of another library that finetune does not know, or whose library
            is not installed.
        RunFolderError: There is no model, or it is damaged.
    """
    if is_hub_name(path):
        path = download_model(path.as_posix())
    if not exists(path):
        raise RunFolderError(explain_missing(path, f"Pass {MODEL_KINDS}."))
    refusal = explain_pickle(path) if path.is_file() else None
    if refusal is not None:
        raise RunFolderError(refusal)
    root = find_whole_folder(path if path.is_dir() else path.parent)
    folder = find_bundle(path)
    if folder is not None:
        return _load_bundle(folder, root=root)
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return _load_checkpoint(best, root=root)
    if (loaded := load_other_model(path)) is not None:
        return ModelBundle(*loaded, path)
    if path.is_file():
        return _load_checkpoint(path, root=root)
    if (path / "study.json").is_file():
        raise RunFolderError(
            f"{path} is the folder of finetune tune, whose models are those of its trials: "
            f"{path / 'trials' / '001'} has the default settings. Train with what the search "
            f"found: finetune fit --config {shlex.quote(str(path / 'best.yaml'))}"
        )
    if (refusal := explain_pickle(path)) is not None:
        raise RunFolderError(refusal)
    raise RunFolderError(explain_other_folder(path))


def _load_bundle(folder: Path, *, root: Path, is_member: bool = False) -> ModelBundle:
    """Return the model of a bundle; no code is imported from below ``root``."""
    tree = read_card_json(folder)
    try:
        if is_ensemble(tree):
            if is_member:
                raise ValueError("a member of an ensemble is an ensemble")
            return _load_ensemble(folder, tree, root=root)
        card = ModelCard.from_json(tree)
        check_digests(tree)
        check_timm_config(folder, card)
        weights = folder / "model.safetensors"
        check_no_pickle(weights)
        _check_sha256(weights, tree["sha256"])
        state = load_file(weights)
        return ModelBundle(build_stored_network(card, state, root), card, folder)
    except (ModelError, RunFolderError) as error:
        is_named = str(error).startswith(str(folder))
        raise type(error)(str(error) if is_named else f"{folder}: {error}") from error
    except (
        OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError
    ) as error:  # fmt: skip
        raise RunFolderError(
            f"The bundle {folder} is damaged ({_summarize_error(error)}). Export it again from the "
            f"run's checkpoints/best.ckpt, or download it again."
        ) from error


def _load_ensemble(folder: Path, tree: Mapping[str, Any], *, root: Path) -> ModelBundle:
    folders, weights, facts = parse_ensemble(tree)
    check_digests(tree)
    for member in folders:
        if not (folder / member).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the link {member} leads out of the folder")
    members = [_load_bundle(folder / member, root=root, is_member=True) for member in folders]
    return combine_models(members, weights=weights, facts=facts, source=folder)


def _load_checkpoint(file: Path, *, root: Path) -> ModelBundle:
    if (refusal := explain_other_kind(file)) is not None:
        raise RunFolderError(refusal)
    try:
        checkpoint = load_checkpoint_file(file)
        card = ModelCard.from_json(checkpoint[CARD_KEY])
        averaged = checkpoint.get(AVERAGE_KEY, {}).get("tensors", {})
        state = {
            name.removeprefix(NETWORK_PREFIX): averaged.get(name, value)
            for name, value in checkpoint["state_dict"].items()
        }
        return ModelBundle(build_stored_network(card, state, root), card, file)
    except (ModelError, RunFolderError) as error:
        raise type(error)(f"{file}: {error}") from error
    except Exception as error:
        raise RunFolderError(
            f"{file} is not a checkpoint written by finetune, or it is damaged "
            f"({_summarize_error(error)}). Pass a run folder, a bundle folder or a .ckpt file of a "
            f"run."
        ) from error


def _summarize_error(error: Exception) -> str:
    """Return the first line of an error's message, with the type name for a KeyError."""
    if isinstance(error, UnpicklingError):  # torch's own message advises to execute the file's code
        return "it contains objects other than tensors, which are not opened"
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text or repr(error)


def format_card_json(tree: Mapping[str, Any]) -> str:
    """Return the content of ``finetune.json`` as text, with the digests of its entries."""
    plain = json.loads(json.dumps(tree))
    return json.dumps(add_digests(plain), indent=2, ensure_ascii=False) + "\n"


def _check_sha256(weights: Path, expected: str) -> None:
    """Check the digest of a weights file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is another one.
    """
    actual = compute_sha256(weights)
    if actual != expected:
        raise ValueError(
            f"SHA-256 of model.safetensors is {actual[:12]}… and not {str(expected)[:12]}… as in "
            f"finetune.json: the weights were changed, or are not complete"
        )


def collect_versions() -> dict[str, str]:
    """Return the versions of finetune and of the libraries that a model depends on."""
    return {key: version(distribution) for key, distribution in _PACKAGES.items()}
