"""Origin of a model of timm's folders: its repository, and the licence that its files state."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.bundle.model_page.weights_origin import WeightsOrigin, find_strictest
from finetune.bundle.runtimes.model_paths import CONFIG_FILE
from finetune.bundle.verification.json_file import (
    MAX_JSON_BYTES,
    check_is_inside,
    read_json_file,
)

_README = "README.md"
_HEAD = re.compile(r"\s*---\r?\n(.*?)\r?\n---", re.DOTALL)
_CACHE_PREFIX = "models--"
"""Prefix of a repository's folder in the cache of the hub, ``models--user--name``."""


def find_folder_origin(folder: Path) -> WeightsOrigin | None:
    """Return the origin of the weights in a folder of timm; None where it is none, or is damaged.

    Args:
        folder: Folder with ``config.json``.
    """
    try:
        config = read_json_file(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return None
    if not isinstance(config, Mapping) or "architecture" not in config:
        return None
    return find_origin(folder, config)


def collect_origin_facts(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts on the card of a hub folder from which its licence and origin are known.

    Args:
        folder: Folder with ``config.json``.
        config: Content of ``config.json``.
    """
    cfg = _get_pretrained_cfg(config)
    label = _find_repository(folder) or cfg.get("architecture") or config.get("architecture")
    return {"weights": f"hub ({label})", **find_origin(folder, config).to_facts()}


def find_origin(folder: Path, config: Mapping[str, Any]) -> WeightsOrigin:
    """Return the origin of the weights in a hub folder.

    The licence is that in the head of ``README.md``, by which the hub lists the model, or that in
    ``config.json``; of two, one that allows no commercial use.

    Args:
        folder: Folder with ``config.json``.
        config: Content of ``config.json``.
    """
    cfg = _get_pretrained_cfg(config)
    head = _read_page_head(folder)
    stated = [WeightsOrigin("hub", None, name) for name in _iter_licenses(head, cfg, config)]
    licence = find_strictest(stated).license if stated else None
    repository = _find_repository(folder)
    base_model = repository or _get_name(head.get("base_model")) or _get_name(cfg.get("hf_hub_id"))
    return WeightsOrigin("hub", base_model, licence)


def _get_pretrained_cfg(config: Mapping[str, Any]) -> Mapping[str, Any]:
    cfg = config.get("pretrained_cfg")
    return cfg if isinstance(cfg, Mapping) and cfg else config


def _read_page_head(folder: Path) -> Mapping[str, Any]:
    """Return the head of a README in YAML; empty where there is none that can be read."""
    file = folder / _README
    try:
        check_is_inside(file)
        if not file.is_file() or file.stat().st_size > MAX_JSON_BYTES:
            return {}
        match = _HEAD.match(file.read_text(encoding="utf-8-sig"))
        head = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return head if isinstance(head, Mapping) else {}


def _iter_licenses(*trees: Mapping[str, Any]) -> Iterator[str]:
    """Yield the licences in trees; that which the hub does not list is the ``license_name``."""
    for tree in trees:
        values = tree.get("license")
        for value in values if isinstance(values, list) else [values]:
            name = tree.get("license_name") if value == "other" else value
            if isinstance(name, str) and name.strip() and name.lower() != "unknown":
                yield name.strip()


def _get_name(value: Any) -> str | None:
    """Return the name of a repository, the first of several; None for what is none."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) and value.count("/") == 1 else None


def _find_repository(folder: Path) -> str | None:
    """Return the repository that a folder in the cache of the hub was downloaded from."""
    *_, store, snapshots, _revision = ("", "", *folder.absolute().parts)
    name = store.removeprefix(_CACHE_PREFIX)
    if snapshots != "snapshots" or name == store or name.count("--") != 1:
        return None
    return name.replace("--", "/")
