"""Models of timm's folders on the hub, which were not written by finetune.

Such a folder has ``config.json`` with an ``architecture`` and a ``pretrained_cfg``, and
``model.safetensors``; transformers writes the same, with keys of its own beside them.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from finetune.bundle.model_card import ModelCard
from finetune.bundle.runtimes.hub_origin import collect_origin_facts
from finetune.bundle.runtimes.model_paths import CONFIG_FILE
from finetune.bundle.stored_network import build_stored_network
from finetune.bundle.verification.file_digests import check_file_digests
from finetune.bundle.verification.json_file import check_is_inside, read_json_file
from finetune.errors import ModelError, RunFolderError
from finetune.lookup import is_import_path
from finetune.models.pretrained.safetensors_file import load_safetensors
from finetune.types import PreprocessSpec

_WEIGHTS = "model.safetensors"
_THRESHOLD = 0.5

_OWN_ARGUMENTS = ("num_classes", "pretrained", "pretrained_cfg")
"""Arguments of ``timm.create_model`` that come from elsewhere."""


def load_hub_folder(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Return the network of a folder that timm or transformers has written, and its card.

    Raises:
        ModelError: It is a model of another library, or of an architecture unknown to timm.
        RunFolderError: A file is damaged, or is not the one that an export has recorded.
    """
    check_file_digests(folder / _WEIGHTS)
    try:
        config = read_json_file(folder / CONFIG_FILE)
        if not isinstance(config, Mapping):
            raise ValueError(f"{CONFIG_FILE} contains no object")
        if "architecture" not in config:
            raise ModelError(_explain_foreign_config(config))
        if is_import_path(name := str(config["architecture"])):
            raise ModelError(
                f"{CONFIG_FILE} names code, '{name}', as the architecture. Such code is not "
                f"executed; timm and transformers write names of timm's networks there. Take the "
                f"model from an author whom you trust."
            )
        card = read_timm_card(config, facts=collect_origin_facts(folder, config))
        check_is_inside(folder / _WEIGHTS)
        state = load_safetensors(folder / _WEIGHTS)
        return build_stored_network(card, state, folder), card
    except (ModelError, RunFolderError) as error:
        raise type(error)(f"{folder}: {error}") from error
    except (
        OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError
    ) as error:  # fmt: skip
        reason = str(error).partition("\n")[0] or repr(error)
        raise RunFolderError(
            f"{folder} has a {CONFIG_FILE} of timm, and cannot be loaded: {reason}. Download it "
            f"again."
        ) from error


def read_timm_card(config: Mapping[str, Any], *, facts: Mapping[str, Any]) -> ModelCard:
    """Return the card of a model that timm's ``config.json`` describes.

    Class names are those of the file, else those of the ImageNet subset of the weights, else
    numbers. Labels that do not exclude each other are predicted from a probability of 0.5.

    Args:
        config: Content of the file.
        facts: Facts on the card.

    Raises:
        KeyError: A required entry is missing.
        ValueError: The preprocessing or the classes are invalid.
    """
    cfg = dict(config.get("pretrained_cfg") or config)
    arguments = dict(config.get("model_args") or {})
    cfg["input_size"] = _find_input_size(cfg, arguments)
    data: dict[str, Any] = resolve_data_config({}, pretrained_cfg=cfg)  # type: ignore[no-untyped-call]
    classes = _find_class_names(config, cfg)
    is_multi_label = config.get("problem_type") == "multi_label_classification"
    return ModelCard(
        backbone=str(config["architecture"]),
        model_args={key: v for key, v in arguments.items() if key not in _OWN_ARGUMENTS},
        classes=classes,
        spec=PreprocessSpec(
            input_size=_to_size(data["input_size"]),
            mean=tuple(map(float, data["mean"])),
            std=tuple(map(float, data["std"])),
            interpolation=str(data["interpolation"]),
            crop_pct=float(data["crop_pct"]),
            crop_mode=str(data.get("crop_mode") or "center"),
        ),
        facts=dict(facts),
        thresholds=(_THRESHOLD,) * len(classes) if is_multi_label else None,
    )


def _find_input_size(cfg: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return channels, height and width of the input, as timm finds them in its own folders."""
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    if (size := arguments.get("img_size")) is not None and cfg.get("fixed_input_size", False):
        height, width = (size, size) if isinstance(size, int) else size
    return int(arguments.get("in_chans") or channels), int(height), int(width)


def _find_class_names(config: Mapping[str, Any], cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names in index order.

    Raises:
        ValueError: Their number is unknown, or differs from that of the names.
    """
    count = config.get("num_classes", cfg.get("num_classes"))
    names = next(
        (tree[key] for tree in (config, cfg) for key in ("label_names", "labels") if tree.get(key)),
        None,
    )
    if names is None and isinstance(tree := config.get("id2label"), Mapping):
        names = [tree[key] for key in sorted(tree, key=int)]
    if names is None:
        names = _find_imagenet_names({**cfg, **config}) or [str(n) for n in range(count or 0)]
    if not names or count not in (None, len(names)):
        raise ValueError(f"{CONFIG_FILE} has {len(names)} class names for {count} classes")
    counts = Counter(map(str, names))
    return tuple(
        f"{name} ({index})" if counts[str(name)] > 1 else str(name)
        for index, name in enumerate(names)
    )


def _find_imagenet_names(cfg: Mapping[str, Any]) -> list[str]:
    """Return the descriptions of the classes of an ImageNet subset; empty for other models."""
    subset = infer_imagenet_subset(dict(cfg))
    if not subset:
        return []
    info = ImageNetInfo(subset)
    descriptions: Any = info.label_descriptions(as_dict=True)
    names: list[str] = info.label_names()  # type: ignore[no-untyped-call]
    return [str(descriptions[name]) for name in names]


def _to_size(values: Any) -> tuple[int, int, int]:
    channels, height, width = (int(value) for value in values)
    return channels, height, width


def _explain_foreign_config(config: Mapping[str, Any]) -> str:
    """Return what a ``config.json`` that is not of timm describes, and the remedy."""
    kind = config.get("architectures") or config.get("model_type")
    name = ", ".join(kind) if isinstance(kind, list) else kind
    found = f"a model of transformers, {name}" if name else "neither 'architecture' nor a model"
    return (
        f"{CONFIG_FILE} describes {found}; finetune loads networks of timm from a hub folder, with "
        f"'architecture' and 'pretrained_cfg'. Look for the same weights in timm's format, or "
        f"begin a run with a backbone of timm."
    )
