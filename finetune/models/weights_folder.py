"""A folder that holds a weights file for each of several backbones."""

import re
from collections.abc import Iterator
from pathlib import Path

import timm

from finetune.errors import ModelError

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_HASH_SUFFIX = re.compile(r"-[0-9a-f]{6,64}")
_MAX_LISTED = 12


def find_weights(folder: Path, backbone: str) -> Path:
    """Return the file, or the timm folder, that holds a backbone's weights.

    In this order: a name that is the backbone's, with its tag or without; one with a hash after it
    (``resnet18-82c76769.pth``); a timm folder; a name that begins with the backbone's and goes on
    after ``_``, ``-`` or ``.``, unless a longer beginning names another backbone
    (``vgg16_bn-6c64b313.pth`` is no vgg16).

    Args:
        folder: Where to look; not below it.
        backbone: timm name, with or without a tag.

    Raises:
        ModelError: None or more than one fits best; says what was looked for, and what lies there.
    """
    found = sorted(_rank_candidates(folder, backbone))
    best = [path for rank, path in found if rank == found[0][0]]
    if len(best) == 1:
        return best[0]
    if best:
        raise ModelError(
            f"Several weights for '{backbone}' lie in {folder}: "
            f"{', '.join(path.name for path in best)}. Keep one of them there."
        )
    name = _strip_tag(backbone)
    raise ModelError(
        f"{folder} holds no weights for '{backbone}': neither {name}.pth, {name}-<hash>.pth or "
        f"{name}_<anything>.pth ({', '.join(_SUFFIXES)}) nor a timm folder {name}/. There are: "
        f"{_format_listing(folder)}."
    )


def _rank_candidates(folder: Path, backbone: str) -> Iterator[tuple[int, Path]]:
    """Yield what may hold the weights, the best with the least number."""
    name = _strip_tag(backbone)
    for path in folder.iterdir():
        if path.is_dir():
            if path.name in (backbone, name) and _is_timm_folder(path):
                yield 3, path
            continue
        if path.suffix not in _SUFFIXES:
            continue
        stem = path.name.removesuffix(path.suffix)
        if stem == backbone:
            yield 0, path
        elif stem == name:
            yield 1, path
        elif stem.startswith(name) and _HASH_SUFFIX.fullmatch(stem, len(name)):
            yield 2, path
        elif _match_backbone(stem) == name and not _has_other_tag(stem, backbone):
            yield 4, path


def _strip_tag(backbone: str) -> str:
    return backbone.partition(".")[0]


def _is_timm_folder(path: Path) -> bool:
    return any((folder / "config.json").is_file() for folder in (path, path / "bundle"))


def _match_backbone(stem: str) -> str | None:
    """Return the longest name of a backbone, without a tag, that a file's name begins with."""
    stem = _strip_tag(stem)
    ends = [match.start() for match in re.finditer(r"[-_]", stem)] + [len(stem)]
    return next((stem[:end] for end in reversed(ends) if timm.is_model(stem[:end])), None)


def _has_other_tag(stem: str, backbone: str) -> bool:
    return "." in backbone and stem.startswith(f"{_strip_tag(backbone)}.")


def _format_listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    more = len(names) - _MAX_LISTED
    shown = ", ".join(names[:_MAX_LISTED]) or "nothing"
    return f"{shown} and {more} more" if more > 0 else shown
