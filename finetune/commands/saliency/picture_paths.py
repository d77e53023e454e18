"""Paths of the pictures of images: short where they are distinct, and no two the same."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath


@dataclass(frozen=True, slots=True)
class PicturedImage:
    """Image whose saliency map is drawn.

    Attributes:
        name: Name that users see, which several images may share: rows of tables of one name, say.
        path: Readable image file.
        is_copy: Whether the file is a copy of an image inside of a table or tar file.
    """

    name: str
    path: Path
    is_copy: bool = False


def plan_pictures(images: Sequence[PicturedImage], folder: Path, root: Path) -> list[Path]:
    """Return the path of each image's picture.

    A picture has the path of its image below ``root``, or else the file name or relative path that
    the user gave, with .png. Images of different folders whose pictures would be the same file get
    as many further folders of their paths as tell them apart, and numbers where these are the same,
    too. An image that is given twice has one picture.

    Args:
        images: Images.
        folder: Folder of the pictures.
        root: Folder of the images, or the only image.
    """
    tails = [_shorten(image.name, root) for image in images]
    full = [_list_full_path(image) for image in images]
    keys: list[object] = [row if images[row].is_copy else full[row] for row in range(len(images))]
    repeated = _find_repeated(tails, keys)
    while longer := [row for row in repeated if len(tails[row].parts) < len(full[row].parts)]:
        for row in longer:
            tails[row] = PurePath(*full[row].parts[-len(tails[row].parts) - 1 :])
        repeated = _find_repeated(tails, keys)
    names = [f"{tail}.png" for tail in tails]
    taken = {name.casefold() for name in names}
    numbered: dict[object, str] = {}
    first_keys: dict[str, object] = {}
    for row in repeated:
        if first_keys.setdefault(names[row].casefold(), keys[row]) == keys[row]:
            continue  # the first of them keeps the name
        if keys[row] not in numbered:
            number = 2
            while (name := f"{tails[row]} ({number}).png").casefold() in taken:
                number += 1
            taken.add(name.casefold())
            numbered[keys[row]] = name
        names[row] = numbered[keys[row]]
    return [folder / name for name in names]


def _find_repeated(tails: Sequence[PurePath], keys: Sequence[object]) -> list[int]:
    """Return the rows of different images with one picture, whatever the case of its name."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, tail in enumerate(tails):
        groups[str(tail).casefold()].append(row)
    return [row for rows in groups.values() if len({keys[row] for row in rows}) > 1 for row in rows]


def _shorten(name: str, root: Path) -> PurePath:
    """Return the name of an image below the folder of all images, without leaving it."""
    path = Path(name)
    if ".." in path.parts:
        return PurePath(path.name)
    if path.is_relative_to(root) and path != root:
        return path.relative_to(root)
    return PurePath(path.name) if path.is_absolute() or path == root else path


def _list_full_path(image: PicturedImage) -> PurePath:
    """Return the longest name of a picture: the path of its image, without the root."""
    name = PurePath(image.name)
    if image.is_copy and not name.is_absolute() and ".." not in name.parts:
        return name  # table and row, which lie in no folder
    absolute = Path(os.path.abspath(name if image.is_copy else image.path))  # noqa: PTH100 - resolves no link
    return absolute.relative_to(absolute.anchor)
