"""Pictures of images with their saliency maps, of the maps that are better than random ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from finetune.bundle.bundle import ModelBundle
from finetune.errors import ConfigError, RunFolderError
from finetune.saliency.file_saliency import (
    FileSaliency,
    compute_file_saliency,
    draw_overlay,
    draw_photo,
)
from finetune.system.files import write_file_atomically
from finetune.types import Reporter
from finetune.units import format_count

_CHUNK_SIZE = 200
"""Images whose maps are held at once, and judged together."""

_MAX_NAMES = 5


@dataclass(frozen=True, slots=True)
class OverlayRow:
    """Saliency map of an image.

    Attributes:
        path: Image.
        file: Picture that was written; None where the map is not trusted, or could not be made.
        deletion: Deletion score of the map; None without a map.
        random_deletion: Mean score of the random maps.
    """

    path: str
    file: str | None
    deletion: float | None
    random_deletion: float | None


@dataclass(frozen=True, slots=True)
class Overlays:
    """Saliency maps of images as files.

    Attributes:
        folder: Folder of the pictures.
        layer: Layer that the maps are made from; empty without one.
        reason: Why there is no picture at all; empty if there is one.
        rows: Row of each image.
    """

    folder: Path
    layer: str
    reason: str
    rows: tuple[OverlayRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        rows = [asdict(row) for row in self.rows]
        return {
            "folder": str(self.folder), "layer": self.layer, "reason": self.reason, "images": rows
        }  # fmt: skip

    def describe(self) -> str:
        """Return a sentence on the pictures and on the images without one."""
        missing = [row.path for row in self.rows if row.file is None]
        num_written = len(self.rows) - len(missing)
        if num_written == 0:
            return f"No saliency map written to {self.folder}. {self.reason}"
        text = f"{format_count(num_written, 'saliency map')} written to {self.folder}"
        if not missing:
            return f"{text}; all of them beat random maps."
        names = ", ".join(missing[:_MAX_NAMES])
        more = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
        return (
            f"{text}; those of {format_count(len(missing), 'image')} are no better than random "
            f"maps and would mislead: {names}{more}"
        )


def check_overlay_folder(folder: Path) -> None:
    """Check that pictures can be written to a folder.

    Raises:
        RunFolderError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--saliency {folder} is a file. Give the path of a folder.")


def write_overlays(
    bundle: ModelBundle,
    paths: Mapping[str, Path],
    folder: Path,
    *,
    root: Path,
    device: torch.device,
    reporter: Reporter,
) -> Overlays:
    """Write the input of the network beside its saliency map, for each map that is trusted.

    Args:
        bundle: Model.
        paths: Readable image files by the names that users see.
        folder: Folder to write to; a picture has the name of its image below ``root``, with .png.
        root: Folder of the images, or the only image.
        device: Device to compute on.
        reporter: Receiver of progress.

    Raises:
        ConfigError: A picture would replace an image.
        DataError: A file can no longer be read.
        StorageError: The disk is full or fails.
    """
    names = list(paths)
    _check_no_input(paths, folder, root)
    rows: list[OverlayRow] = []
    layer, reasons = "", dict[str, None]()
    reporter.start("saliency maps", len(names))
    for first in range(0, len(names), _CHUNK_SIZE):
        chunk = names[first : first + _CHUNK_SIZE]
        found = compute_file_saliency(
            bundle,
            [paths[name] for name in chunk],
            device=device,
            seed=first,
            on_image=reporter.advance,
        )
        layer = found.maps.layer
        reasons[found.maps.describe()] = None
        rows += _write_chunk(found, chunk, folder, root)
    reporter.finish()
    is_empty = all(row.file is None for row in rows)
    return Overlays(folder, layer, " ".join(reasons) if is_empty else "", tuple(rows))


def _write_chunk(
    found: FileSaliency, names: Sequence[str], folder: Path, root: Path
) -> list[OverlayRow]:
    rows = []
    for row, (name, result) in enumerate(zip(names, found.maps.results, strict=True)):
        if result is None:
            rows.append(OverlayRow(name, None, None, None))
            continue
        file = None
        if result.is_trusted:
            file = _build_path(name, folder, root)
            pixels = found.pixels[row]
            _save(join_pictures(draw_photo(pixels), draw_overlay(pixels, result.map)), file)
        scores = round(result.deletion, 6), round(result.random_deletion, 6)
        rows.append(OverlayRow(name, None if file is None else str(file), *scores))
    return rows


def _check_no_input(paths: Mapping[str, Path], folder: Path, root: Path) -> None:
    """Check that no picture would replace an image, before the first is written.

    Raises:
        ConfigError: One would.
    """
    if not folder.exists():
        return
    planned = {_build_path(name, folder, root).resolve() for name in paths}
    replaced = next((path for path in paths.values() if path.resolve() in planned), None)
    if replaced is not None:
        raise ConfigError(
            f"--saliency {folder} would replace an image of the prediction ({replaced}). Give "
            f"another folder."
        )


def _build_path(name: str, folder: Path, root: Path) -> Path:
    return folder / f"{_shorten(name, root)}.png"


def _shorten(name: str, root: Path) -> Path:
    """Return the name of an image below the folder of all images."""
    path = Path(name)
    if path.is_relative_to(root) and path != root:
        return path.relative_to(root)
    return Path(path.name) if path.is_absolute() or ".." in path.parts or path == root else path


def join_pictures(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two pictures of the same height beside each other."""
    joined = Image.new("RGB", (left.width + right.width, left.height))
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


def _save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_file_atomically(file) as temporary:
        picture.save(temporary, format="PNG")
