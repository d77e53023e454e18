"""Comparison of timm's ``config.json`` with the model card: both describe the same network."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.bundle.model_card import ModelCard
from finetune.bundle.verification.json_file import read_json_file

_FILE = "config.json"


def check_timm_config(folder: Path, card: ModelCard) -> None:
    """Check that ``config.json``, if there is one, is that of the model card.

    Raises:
        ValueError: It is damaged, or of another model; the message names what differs.
    """
    file = folder / _FILE
    if not file.exists() and not file.is_symlink():
        return
    try:
        config = read_json_file(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{_FILE} is damaged: {error}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{_FILE} is damaged: it contains no object")
    if found := list(_iter_differences(config, card)):
        raise ValueError(
            f"{_FILE} is not that of finetune.json: {', '.join(found)}. One of them belongs to "
            f"another model"
        )


def _iter_differences(config: Mapping[str, Any], card: ModelCard) -> Iterator[str]:
    """Yield what differs, as "key of config.json and value of the card"."""
    spec = card.spec
    cfg = config.get("pretrained_cfg")
    cfg = cfg if isinstance(cfg, Mapping) else {}
    if (architecture := config.get("architecture")) is not None:
        own, other = (str(name).partition(".")[0] for name in (card.backbone, architecture))
        if own != other:
            yield f"the architecture {other} and not {own}"
    if (names := config.get("label_names")) is not None and names != list(card.classes):
        yield _describe_classes(names, card.classes)
    elif config.get("num_classes", len(card.classes)) != len(card.classes):
        yield f"{config['num_classes']} classes and not {len(card.classes)}"
    expected = {
        "input_size": list(spec.input_size),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": spec.crop_mode,
    }
    for key, value in expected.items():
        if key in cfg and cfg[key] != value:
            yield f"{key} {cfg[key]} and not {value}"


def _describe_classes(names: Any, classes: tuple[str, ...]) -> str:
    if not isinstance(names, list) or len(names) != len(classes):
        count = len(names) if isinstance(names, list) else 0
        return f"{count} classes and not {len(classes)}"
    if sorted(map(str, names)) == sorted(classes):
        return "the same classes in another order"
    other = next(name for name, own in zip(names, classes, strict=True) if name != own)
    return f"other classes, such as '{other}'"
