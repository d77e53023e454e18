"""Measures which copies of photos are found, and whether anything else is taken for one.

    uv run python scripts/benchmarks/copies.py photos/ --images 500
    uv run python scripts/benchmarks/copies.py photos/ --images 300 --weights resnet18.pth
    uv run --with imagehash python scripts/benchmarks/copies.py photos/ --images 500 --imagehash

Saves copies of some photos below a temporary folder, each changed in one way, and looks for copies
in them and all photos together. Recall is the share of the changed ones that are found in one group
with their original. What is found among the photos themselves has to be judged by eye: with
`--pictures FOLDER` each group is drawn there. `--weights` adds what `inspect --backbone` finds
through the features of a backbone, and how often a cosine alone would take photos for copies;
`--imagehash` what the 64-bit perceptual hash of that library finds at its usual distances.
"""

import random
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from finetune.audit.audit import DuplicateSamples
from finetune.audit.cropped_duplicates import find_cropped_duplicates
from finetune.audit.fingerprint_table import fingerprint_files
from finetune.audit.near_duplicates import find_duplicates
from finetune.audit.report import draw_duplicates
from finetune.data.scan import list_images
from finetune.types import Reporter, Sample

Array = NDArray[np.float32]
Change = Callable[[Image.Image, random.Random], tuple[Image.Image, int]]


def _cropped(least: float, most: float) -> Change:
    """Return what cuts such a share off the width and the height, anywhere."""

    def cut(image: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
        width, height = image.size
        across, down = rng.uniform(least, most) * width, rng.uniform(least, most) * height
        left, top = rng.random() * across, rng.random() * down
        box = (left, top, width - across + left, height - down + top)
        return image.crop(tuple(round(edge) for edge in box)), 90  # type: ignore[arg-type]

    return cut


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
    "cropped by up to 10%": _cropped(0, 0.1),
    "brightness +-20%": lambda image, rng: (
        ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2)), 90
    ),
    "cropped by 10-20%": _cropped(0.1, 0.2),
    "cropped by 20-30%": _cropped(0.2, 0.3),
}  # fmt: skip


def main() -> None:
    """Make the copies, look for them, and print what was found."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=500, help="photos to change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="where to draw what is found in the photos")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", help="of the backbone; without them it is not asked")
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
    everything = [*photos, *map(Path, origins)]
    features = _features(options, everything) if options.weights else None
    few = None if features is None else features[: len(photos)]
    alone = _groups(photos, few, "the photos alone")
    _draw(alone[-1], options.pictures)
    ways = _groups(everything, features, "with the changed ones")
    recalls = [_recall(groups, origins, len(chosen)) for groups in ways]
    print(f"\n{'recall of':<26} {'found':>7} {'with features' if options.weights else '':>14}")
    for kind in CHANGES:
        print(f"{kind:<26} {recalls[0][kind]:>7.3f}", *(f"{r[kind]:>14.3f}" for r in recalls[1:]))
    if few is not None:
        _by_cosine(few)
    if options.imagehash:
        _by_imagehash(photos, origins)


def _recall(
    groups: Sequence[CopyGroup], origins: dict[str, tuple[str, str]], count: int
) -> dict[str, float]:
    group_of = {sample.path: n for n, group in enumerate(groups) for sample in group.samples}
    found = Counter(
        kind
        for copy, (photo, kind) in origins.items()
        if copy in group_of and group_of[copy] == group_of.get(photo)
    )
    return {kind: found[kind] / count for kind in CHANGES}


def _features(options: Namespace, files: Sequence[Path]) -> Array:
    import torch

    from finetune.data.dataset import ImageDataset, create_loader
    from finetune.data.images.source import FileSource
    from finetune.data.transforms.eval_transform import EvalTransform
    from finetune.models.backbone import create_network
    from finetune.models.classifier import normalise
    from finetune.models.head import capture_head_inputs, linear_head

    network = create_network(options.backbone, num_classes=2, weights=options.weights)
    spec, head = network.spec, linear_head(network.module)
    assert head is not None
    network.module.eval()
    dataset = ImageDataset(FileSource(files), [0] * len(files), EvalTransform(spec))
    found = []
    with torch.inference_mode(), head_inputs(head) as seen:
        for batch in create_loader(dataset, batch_size=32, num_workers=0):
            network.module(normalise(batch["image"], mean=spec.mean, std=spec.std))
            found.append(seen.pop().clone())
    table: Array = torch.cat(found).numpy()
    return table


def _by_cosine(features: Array) -> None:
    """Say how many photos a cosine takes for copies, which none of the above are."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.triu(unit @ unit.T, k=1)
    shown = ", ".join(f"{least}: {(cosines >= least).sum()}" for least in (0.85, 0.9, 0.95))
    print(f"\npairs of the photos alone with a cosine of at least {shown}")


def _groups(files: Sequence[Path], features: Array | None, what: str) -> list[list[CopyGroup]]:
    """Return the groups of copies; and what they are with features, where there are some."""
    samples = [Sample(str(file), file.parent.name) for file in files]
    start = time.perf_counter()
    good, looks, _ = look_at_files(
        Path("/"), samples, max_pixels=10**9, stores=None, limit_bytes=0, reporter=Reporter()
    )
    looked = time.perf_counter()
    assert len(good) == len(samples), "features are of all images"
    paths = [Path(sample.path) for sample in good]
    ways = [find_copies(looks, paths)]
    searched = time.perf_counter()
    print(
        f"{what}: {len(good)} images, {len(ways[0])} groups ({sum(g.exact for g in ways[0])} "
        f"exact); {looked - start:.1f} s to look, {searched - looked:.1f} s to search"
    )
    if features is not None:
        ways.append(find_crops(looks, paths, ways[0], [features]))
        seconds = time.perf_counter() - searched
        print(f"    {len(ways[1])} groups with features, in {seconds:.1f} s")
    return [
        [CopyGroup(tuple(good[row] for row in one.rows), one.exact) for one in found]
        for found in ways
    ]


def _draw(groups: Sequence[CopyGroup], folder: Path | None) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups, 1):
        picture_of_copies(group, Path("/")).save(folder / f"{number:04}.jpg")


def _by_imagehash(photos: Sequence[Path], origins: dict[str, tuple[str, str]]) -> None:
    import imagehash

    def bits(file: str | Path) -> Array:
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
