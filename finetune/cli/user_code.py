"""Errors that code of the user raises, such as the forward pass of a network of one's own."""

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from finetune.lookup import is_import_path


def explain_user_error(error: BaseException) -> str | None:
    """Return what failed, and the file and line of the user's code; None for an error of others.

    Code of the user is the package of a backbone ``package.module:function`` that was running, and
    what lies neither in finetune nor in an installed package.
    """
    walked = list(traceback.walk_tb(error.__traceback__))
    backbone = next(_iter_backbones(frame for frame, _ in walked), None)
    places = [
        (frame, line)
        for frame, line in walked
        if _is_of_backbone(frame, backbone) or _is_own(frame)
    ]
    if not places:
        return None
    frame, line = places[-1]
    name = "your own code" if backbone is None else f"'{backbone}'"
    return (
        f"{name} fails with {type(error).__name__}: {error} ({frame.f_code.co_filename}, line "
        f"{line}, in {frame.f_code.co_name}). Correct it there."
    )


def _iter_backbones(frames: Iterator[FrameType]) -> Iterator[str]:
    """Yield the import paths of the networks whose methods are running."""
    for frame in frames:
        cfg = getattr(frame.f_locals.get("self"), "pretrained_cfg", None)
        name = cfg.get("architecture") if isinstance(cfg, dict) else None
        if isinstance(name, str) and is_import_path(name):
            yield name


def _is_of_backbone(frame: FrameType, backbone: str | None) -> bool:
    """Return whether a frame runs code of the top-level package of a backbone."""
    if backbone is None:
        return False
    module = str(frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] == backbone.partition(":")[0].partition(".")[0]


def _is_own(frame: FrameType) -> bool:
    file = Path(frame.f_code.co_filename)
    paths = sysconfig.get_paths()
    installed = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    folders = [Path(__file__).parents[1], *map(Path, installed)]
    return file.is_file() and not any(file.is_relative_to(folder) for folder in folders)
