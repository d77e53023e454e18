"""Model card without what only its author should know: folders of the author's machine."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from finetune.bundle.bundle import ModelBundle

_PATH_KEYS = ("weights", "run", "model", "path")
_ABSOLUTE = re.compile(r"(/|~|\\\\|[A-Za-z]:[\\/])")
_NO_PATHS = ("hub (", "hf-hub:", "hf_hub:")


def remove_local_paths(bundle: ModelBundle) -> ModelBundle:
    """Return a model whose card names files and runs without their folders."""
    card = replace(bundle.card, facts=_clean(bundle.card.facts))
    members = tuple(remove_local_paths(member) for member in bundle.members)
    return replace(bundle, card=card, members=members)


def _clean(value: Any, key: str = "") -> Any:
    """Return JSON values with paths replaced by the names of their files."""
    if isinstance(value, Mapping):
        return {name: _clean(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(entry, key) for entry in value]
    is_path = isinstance(value, str) and not value.startswith(_NO_PATHS)
    if is_path and (_ABSOLUTE.match(value) or (key in _PATH_KEYS and re.search(r"[\\/]", value))):
        separator = PureWindowsPath if "\\" in value else PurePosixPath
        return separator(value).name or value
    return value
