"""Search for the weights of a backbone in a folder with weights files of several backbones."""

import re
from collections.abc import Iterator
from pathlib import Path

import timm

from finetune.errors import ModelError
from finetune.lookup import is_import_path

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_HASH_SUFFIX = re.compile(r"-[0-9a-f]{6,64}")
_MAX_LISTED = 12


def find_weights(folder: Path, backbone: str) -> Path:
    """Return the file, or the timm folder, of a backbone's weights.

    In order of preference: a file named as the backbone, with or without its tag; the same with a
    hash appended (``resnet18-82c76769.pth``); a timm folder; a name that continues the backbone's
    after ``_``, ``-`` or ``.``, unless a longer prefix names another backbone
    (``vgg16_bn-6c64b313.pth`` does not match vgg16).

    Args:
        folder: Folder to search, without its subfolders.
        backbone: timm name, with or without a tag; of ``package.module:function`` the module's.

    Raises:
        ModelError: No file matches, or several match equally well; the message lists the patterns
            and the files.
    """
    candidates = sorted(_rank_candidates(folder, backbone))
    best = [path for rank, path in candidates if rank == candidates[0][0]]
    if len(best) == 1:
        return best[0]
    if best:
        raise ModelError(
            f"{folder} contains several weights files of '{backbone}': "
            f"{', '.join(path.name for path in best)}. Keep only one of them."
        )
    name = _strip_tag(backbone)
    raise ModelError(
        f"{folder} contains no weights of '{backbone}': neither {name}.pth, {name}-<hash>.pth or "
        f"{name}_<anything>.pth ({', '.join(_SUFFIXES)}) nor a timm folder {name}/. It contains: "
        f"{_format_listing(folder)}."
    )


def _rank_candidates(folder: Path, backbone: str) -> Iterator[tuple[int, Path]]:
    """Yield the files and folders that match a backbone, with their rank; 0 is the best."""
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
    """Return the name of a backbone in file names: without its tag, or that of one's own module."""
    if is_import_path(backbone):
        return backbone.partition(":")[0].rpartition(".")[2]
    return backbone.partition(".")[0]


def _is_timm_folder(path: Path) -> bool:
    return any((folder / "config.json").is_file() for folder in (path, path / "bundle"))


def _match_backbone(stem: str) -> str | None:
    """Return the longest prefix of a file's stem that names a backbone, without a tag, or None."""
    stem = _strip_tag(stem)
    ends = [match.start() for match in re.finditer(r"[-_]", stem)] + [len(stem)]
    return next((stem[:end] for end in reversed(ends) if timm.is_model(stem[:end])), None)


def _has_other_tag(stem: str, backbone: str) -> bool:
    return "." in backbone and stem.startswith(f"{_strip_tag(backbone)}.")


def _format_listing(folder: Path) -> str:
    """Return the names in a folder, at most 12 of them."""
    names = sorted(entry.name for entry in folder.iterdir())
    num_omitted = len(names) - _MAX_LISTED
    listing = ", ".join(names[:_MAX_LISTED]) or "nothing"
    return f"{listing} and {num_omitted} more" if num_omitted > 0 else listing
