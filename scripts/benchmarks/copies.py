"""Measures which copies of photos are found, and whether anything else is taken for one.

    uv run python scripts/benchmarks/copies.py photos/ --images 500
    uv run --with imagehash python scripts/benchmarks/copies.py photos/ --images 500 --imagehash

Saves copies of some photos below a temporary folder, each changed in one way, and looks for copies
in them and all photos together. Recall is the share of the changed ones that are found in one group
with their original. What is found among the photos themselves has to be judged by eye: with
`--pictures FOLDER` each group is drawn there. `--imagehash` adds what the 64-bit perceptual hash of
that library finds at its usual distances.
"""

import random
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

from finetune.data.audit import CopyGroup
from finetune.data.copies import find_copies
from finetune.data.findings import picture_of_copies
from finetune.data.looks import look_at_files
from finetune.data.scan import list_images
from finetune.types import Reporter, Sample

Change = Callable[[Image.Image, random.Random], tuple[Image.Image, int]]


def _cropped(image: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    """Cut up to a tenth off the width and the height, anywhere."""
    width, height = image.size
    across, down = rng.uniform(0, 0.1) * width, rng.uniform(0, 0.1) * height
    left, top = rng.random() * across, rng.random() * down
    box = (left, top, width - across + left, height - down + top)
    return image.crop(tuple(round(edge) for edge in box)), 90  # type: ignore[arg-type]


def _scaled(image: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    scale = 0.25 * 8 ** rng.random()
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC), 90


def _turned(image: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    turns = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270
    return image.transpose(rng.choice(turns)), 90


CHANGES: dict[str, Change] = {
    "JPEG quality 30-95": lambda image, rng: (image, rng.randint(30, 95)),
    "scale 0.25-2": _scaled,
    "grey": lambda image, _: (image.convert("L"), 90),
    "turned by 90, 180, 270": _turned,
    "mirrored": lambda image, _: (ImageOps.mirror(image), 90),
    "cropped by up to 10%": _cropped,
    "brightness +-20%": lambda image, rng: (
        ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2)), 90
    ),
}  # fmt: skip


def main() -> None:
    """Make the copies, look for them, and print what was found."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=500, help="photos to change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="where to draw what is found in the photos")
    parser.add_argument("--imagehash", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, Path(folder))


def _measure(options: Namespace, folder: Path) -> None:
    photos, _ = list_images(options.photos.resolve())
    rng = random.Random(options.seed)
    chosen = rng.sample(photos, min(options.images, len(photos)))
    origins: dict[str, tuple[str, str]] = {}
    for number, photo in enumerate(chosen):
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        for kind, change in CHANGES.items():
            changed, quality = change(image, rng)
            copy = folder / f"{len(origins):06}-{number}.jpg"
            changed.save(copy, quality=quality)
            origins[str(copy)] = (str(photo), kind)
    alone = _groups(photos, "the photos alone")
    _draw(alone, options.pictures)
    groups = _groups([*photos, *map(Path, origins)], "with the changed ones")
    group_of = {sample.path: n for n, group in enumerate(groups) for sample in group.samples}
    found = Counter(
        kind
        for copy, (photo, kind) in origins.items()
        if copy in group_of and group_of[copy] == group_of.get(photo)
    )
    print(f"\n{'recall of':<26} {'found':>7} of")
    for kind in CHANGES:
        print(f"{kind:<26} {found[kind] / len(chosen):>7.3f} {len(chosen)}")
    if options.imagehash:
        _by_imagehash(photos, origins)


def _groups(files: Sequence[Path], what: str) -> list[CopyGroup]:
    samples = [Sample(str(file), file.parent.name) for file in files]
    start = time.perf_counter()
    good, looks, _ = look_at_files(
        Path("/"), samples, max_pixels=10**9, stores=None, limit_bytes=0, reporter=Reporter()
    )
    looked = time.perf_counter()
    found = find_copies(looks, [Path(sample.path) for sample in good])
    groups = [CopyGroup(tuple(good[row] for row in copies.rows), copies.exact) for copies in found]
    print(
        f"{what}: {len(good)} images, {len(groups)} groups ({sum(g.exact for g in groups)} exact); "
        f"{looked - start:.1f} s to look, {time.perf_counter() - looked:.1f} s to search"
    )
    return groups


def _draw(groups: Sequence[CopyGroup], folder: Path | None) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups, 1):
        picture_of_copies(group, Path("/")).save(folder / f"{number:04}.jpg")


def _by_imagehash(photos: Sequence[Path], origins: dict[str, tuple[str, str]]) -> None:
    import imagehash
    import numpy as np

    def bits(file: str | Path) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        with Image.open(file) as image:
            return imagehash.phash(image).hash.ravel().astype(np.float32)

    known = np.stack([bits(photo) for photo in photos])
    row_of = {str(photo): row for row, photo in enumerate(photos)}
    copies = np.stack([bits(copy) for copy in origins])
    distances = copies @ (1 - known.T) + (1 - copies) @ known.T
    between = known @ (1 - known.T) + (1 - known) @ known.T
    np.fill_diagonal(between, 64)
    print("\nimagehash.phash: recall, and pairs of photos that it takes for copies")
    for most in (4, 8, 12):
        hits = Counter[str]()
        for row, (photo, kind) in enumerate(origins.values()):
            hits[kind] += bool(distances[row, row_of[photo]] <= most)
        total = len(origins) // len(CHANGES)
        shown = ", ".join(f"{kind} {hits[kind] / total:.3f}" for kind in CHANGES)
        print(f"  distance <= {most}: {shown}; {int((between <= most).sum() / 2)} pairs")


if __name__ == "__main__":
    main()
