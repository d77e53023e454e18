"""Recall of near-duplicate search for changed photos, and groups among the photos themselves.

    uv run python scripts/benchmarks/duplicates.py photos/ --images 500
    uv run python scripts/benchmarks/duplicates.py photos/ --images 300 --weights resnet18.pth
    uv run --with imagehash python scripts/benchmarks/duplicates.py photos/ --images 500 --imagehash

Saves changed copies of some photos in a temporary folder, one per kind of change, and searches for
duplicates among them and all photos. Recall is the fraction of changed photos found in one group
with their original. Groups among the photos themselves must be judged by eye: `--drawings FOLDER`
draws each group there. `--weights` adds the duplicates that `inspect --backbone` finds by the
features of a backbone, and the number of photo pairs above a cosine threshold; `--imagehash` adds
the 64-bit perceptual hash of that library at its usual distances.
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

from finetune.audit.cropped_duplicates import find_cropped_duplicates
from finetune.audit.findings.duplicate_samples import DuplicateSamples
from finetune.audit.fingerprint_table import fingerprint_files
from finetune.audit.near_duplicates import DuplicateGroup, find_duplicates
from finetune.audit.report import draw_duplicates
from finetune.data.scan import list_images
from finetune.types import ReadOptions, Reporter, Sample

Array = NDArray[np.float32]
Change = Callable[[Image.Image, random.Random], tuple[Image.Image, int]]


def _create_crop(minimum: float, maximum: float) -> Change:
    """Return a change that removes a random fraction of the width and the height."""

    def crop(image: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
        width, height = image.size
        across = rng.uniform(minimum, maximum) * width
        down = rng.uniform(minimum, maximum) * height
        left, top = rng.random() * across, rng.random() * down
        box = (left, top, width - across + left, height - down + top)
        return image.crop(tuple(round(edge) for edge in box)), 90  # type: ignore[arg-type]

    return crop


def _scale(image: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    scale = 0.25 * 8 ** rng.random()
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC), 90


def _rotate(image: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    angles = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270
    return image.transpose(rng.choice(angles)), 90


CHANGES: dict[str, Change] = {
    "JPEG quality 30-95": lambda image, rng: (image, rng.randint(30, 95)),
    "scale 0.25-2": _scale,
    "grey": lambda image, _: (image.convert("L"), 90),
    "rotated by 90, 180, 270": _rotate,
    "flipped": lambda image, _: (ImageOps.mirror(image), 90),
    "cropped by up to 10%": _create_crop(0, 0.1),
    "brightness +-20%": lambda image, rng: (
        ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2)), 90
    ),
    "cropped by 10-20%": _create_crop(0.1, 0.2),
    "cropped by 20-30%": _create_crop(0.2, 0.3),
}  # fmt: skip


def main() -> None:
    """Write the changed photos, search for duplicates and print the recall."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=500, help="number of photos to change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawings", type=Path, help="folder for drawings of groups among photos")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", help="weights of the backbone; without them no features")
    parser.add_argument("--imagehash", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, Path(folder))


def _measure(options: Namespace, folder: Path) -> None:
    photos = list_images(options.photos.resolve()).files
    rng = random.Random(options.seed)
    chosen = rng.sample(photos, min(options.images, len(photos)))
    origins: dict[str, tuple[str, str]] = {}
    for number, photo in enumerate(chosen):
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        for kind, change in CHANGES.items():
            changed, quality = change(image, rng)
            file = folder / f"{len(origins):06}-{number}.jpg"
            changed.save(file, quality=quality)
            origins[str(file)] = (str(photo), kind)
    files = [*photos, *map(Path, origins)]
    features = _compute_features(options, files) if options.weights else None
    photo_features = None if features is None else features[: len(photos)]
    photo_groups = _find_groups(photos, photo_features, "photos alone")
    _draw(photo_groups[-1], options.drawings)
    methods = _find_groups(files, features, "with changed photos")
    recalls = [_compute_recall(groups, origins, len(chosen)) for groups in methods]
    print(f"\n{'recall of':<26} {'found':>7} {'with features' if options.weights else '':>14}")
    for kind in CHANGES:
        print(f"{kind:<26} {recalls[0][kind]:>7.3f}", *(f"{r[kind]:>14.3f}" for r in recalls[1:]))
    if photo_features is not None:
        _print_cosine_pairs(photo_features)
    if options.imagehash:
        _print_imagehash(photos, origins)


def _compute_recall(
    groups: Sequence[DuplicateSamples], origins: dict[str, tuple[str, str]], count: int
) -> dict[str, float]:
    group_of = {sample.path: n for n, group in enumerate(groups) for sample in group.samples}
    counts = Counter(
        kind
        for file, (photo, kind) in origins.items()
        if file in group_of and group_of[file] == group_of.get(photo)
    )
    return {kind: counts[kind] / count for kind in CHANGES}


def _compute_features(options: Namespace, files: Sequence[Path]) -> Array:
    import torch

    from finetune.data.dataset import ImageDataset, create_loader
    from finetune.data.images.source import FileSource
    from finetune.data.transforms.eval_transform import EvalTransform
    from finetune.models.backbone import create_network
    from finetune.models.classifier import normalise
    from finetune.models.head import capture_head_inputs, find_linear_head

    network = create_network(options.backbone, num_classes=2, weights=options.weights)
    spec, head = network.spec, find_linear_head(network.module)
    assert head is not None
    network.module.eval()
    dataset = ImageDataset(FileSource(files), [0] * len(files), EvalTransform(spec))
    features = []
    with torch.inference_mode(), capture_head_inputs(head) as inputs:
        for batch in create_loader(dataset, batch_size=32, num_workers=0):
            network.module(normalise(batch["image"], mean=spec.mean, std=spec.std))
            features.append(inputs.pop().clone())
    table: Array = torch.cat(features).numpy()
    return table


def _print_cosine_pairs(features: Array) -> None:
    """Print the number of photo pairs above cosine thresholds."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.triu(unit @ unit.T, k=1)
    counts = ", ".join(f"{limit}: {(cosines >= limit).sum()}" for limit in (0.85, 0.9, 0.95))
    print(f"\npairs of photos with a cosine of at least {counts}")


def _find_groups(
    files: Sequence[Path], features: Array | None, title: str
) -> list[list[DuplicateSamples]]:
    """Return the groups of duplicates without features and, if there are any, with features."""
    samples = [Sample(str(file), file.parent.name) for file in files]
    start = time.perf_counter()
    readable, fingerprints, _ = fingerprint_files(
        Path("/"),
        samples,
        options=ReadOptions(max_pixels=10**9),
        stores_dir=None,
        limit_bytes=0,
        reporter=Reporter(),
    )
    fingerprinted = time.perf_counter()
    assert len(readable) == len(samples), "features are of all images"
    paths = [Path(sample.path) for sample in readable]
    methods: list[list[DuplicateGroup]] = [find_duplicates(fingerprints, paths)]
    searched = time.perf_counter()
    num_exact = sum(group.is_exact for group in methods[0])
    print(
        f"{title}: {len(readable)} images, {len(methods[0])} groups ({num_exact} exact); "
        f"fingerprints {fingerprinted - start:.1f} s, search {searched - fingerprinted:.1f} s"
    )
    if features is not None:
        methods.append(find_cropped_duplicates(fingerprints, paths, methods[0], [features]))
        seconds = time.perf_counter() - searched
        print(f"    {len(methods[1])} groups with features, in {seconds:.1f} s")
    return [
        [DuplicateSamples(tuple(readable[row] for row in g.rows), g.is_exact) for g in groups]
        for groups in methods
    ]


def _draw(groups: Sequence[DuplicateSamples], folder: Path | None) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups, 1):
        draw_duplicates(group, Path("/")).save(folder / f"{number:04}.jpg")


def _print_imagehash(photos: Sequence[Path], origins: dict[str, tuple[str, str]]) -> None:
    import imagehash

    def compute_bits(file: str | Path) -> Array:
        with Image.open(file) as image:
            return np.asarray(imagehash.phash(image).hash.ravel(), np.float32)

    photo_bits = np.stack([compute_bits(photo) for photo in photos])
    row_of = {str(photo): row for row, photo in enumerate(photos)}
    bits = np.stack([compute_bits(file) for file in origins])
    distances = bits @ (1 - photo_bits.T) + (1 - bits) @ photo_bits.T
    between = photo_bits @ (1 - photo_bits.T) + (1 - photo_bits) @ photo_bits.T
    np.fill_diagonal(between, 64)
    print("\nimagehash.phash: recall, and pairs of photos reported as duplicates")
    for limit in (4, 8, 12):
        hits = Counter[str]()
        for row, (photo, kind) in enumerate(origins.values()):
            hits[kind] += bool(distances[row, row_of[photo]] <= limit)
        total = len(origins) // len(CHANGES)
        recalls = ", ".join(f"{kind} {hits[kind] / total:.3f}" for kind in CHANGES)
        print(f"  distance <= {limit}: {recalls}; {int((between <= limit).sum() / 2)} pairs")


if __name__ == "__main__":
    main()
