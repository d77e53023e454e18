"""Pictures of images with their saliency maps, of the maps that are better than random ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from finetune.bundle.bundle import ModelBundle
from finetune.commands.saliency.picture_paths import PicturedImage, plan_pictures
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
_REMEDY = "Free space there, or choose another --saliency."


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
        misleading = [r.path for r in self.rows if r.file is None and r.deletion is not None]
        num_written = sum(row.file is not None for row in self.rows)
        if num_written == 0:
            return f"No saliency map written to {self.folder}. {self.reason}"
        text = f"{format_count(num_written, 'saliency map')} written to {self.folder}"
        if not misleading:
            return f"{text}; all of them beat random maps."
        return (
            f"{text}; those of {format_count(len(misleading), 'image')} are no better than random "
            f"maps and would mislead: {_join_names(misleading)}"
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
    images: Sequence[PicturedImage],
    folder: Path,
    *,
    root: Path,
    device: torch.device,
    reporter: Reporter,
) -> Overlays:
    """Write the input of the network beside its saliency map, for each map that is trusted.

    An image that can no longer be read is left out, with a warning.

    Args:
        bundle: Model.
        images: Image files.
        folder: Folder to write to; for the names of the pictures, see ``plan_pictures``.
        root: Folder of the images, or the only image.
        device: Device to compute on.
        reporter: Receiver of progress and the warning.

    Raises:
        ConfigError: A picture would replace an image.
        StorageError: The disk is full or fails.
    """
    check_no_input(images, folder, root)
    pictures = plan_pictures(images, folder, root)
    rows: list[OverlayRow] = []
    unreadable: list[str] = []
    layer, reasons = "", dict[str, None]()
    reporter.start("saliency maps", len(images))
    for first in range(0, len(images), _CHUNK_SIZE):
        chunk = slice(first, first + _CHUNK_SIZE)
        found = compute_file_saliency(
            bundle,
            [image.path for image in images[chunk]],
            device=device,
            seed=first,
            on_image=reporter.advance,
        )
        layer = found.maps.layer or layer
        if said := found.maps.describe():
            reasons[said] = None
        reporter.advance(len(found.unreadable))
        unreadable += [
            f"{images[first + row].name} ({reason})" for row, reason in found.unreadable.items()
        ]
        rows += _write_chunk(found, images[chunk], pictures[chunk])
    reporter.finish()
    if unreadable:
        reporter.warn(
            f"{format_count(len(unreadable), 'image')} without a saliency map, as the file can no "
            f"longer be read: {_join_names(unreadable)}"
        )
    is_empty = all(row.file is None for row in rows)
    reason = (" ".join(reasons) or "No image can be read any more.") if is_empty else ""
    return Overlays(folder, layer, reason, tuple(rows))


def _write_chunk(
    found: FileSaliency, images: Sequence[PicturedImage], pictures: Sequence[Path]
) -> list[OverlayRow]:
    rows = []
    for row, (image, result) in enumerate(zip(images, found.maps.results, strict=True)):
        if result is None:
            rows.append(OverlayRow(image.name, None, None, None))
            continue
        file = None
        if result.is_trusted:
            file = pictures[row]
            pixels = found.pixels[row]
            _save(join_pictures(draw_photo(pixels), draw_overlay(pixels, result.map)), file)
        scores = round(result.deletion, 6), round(result.random_deletion, 6)
        rows.append(OverlayRow(image.name, None if file is None else str(file), *scores))
    return rows


def check_no_input(images: Sequence[PicturedImage], folder: Path, root: Path) -> None:
    """Check that no picture would replace an image, before the first is written.

    Args:
        images: Image files.
        folder: Folder of the pictures.
        root: Folder of the images, or the only image.

    Raises:
        ConfigError: One would.
    """
    if not folder.exists():
        return
    planned = {picture.resolve() for picture in plan_pictures(images, folder, root)}
    replaced = next((image.path for image in images if image.path.resolve() in planned), None)
    if replaced is not None:
        raise ConfigError(
            f"--saliency {folder} would replace an image of the prediction ({replaced}). Give "
            f"another folder."
        )


def _join_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def join_pictures(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two pictures of the same height beside each other."""
    joined = Image.new("RGB", (left.width + right.width, left.height))
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


def _save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_file_atomically(file, _REMEDY) as temporary:
        picture.save(temporary, format="PNG")
