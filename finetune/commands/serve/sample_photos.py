"""Photos of a run that the page of a server offers."""

from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from finetune.commands.report.photos.thumbnails import read_thumbnail
from finetune.commands.run_images import RunImages, read_run_images, read_run_of_part
from finetune.errors import DataError, FinetuneError
from finetune.server.served_model import SamplePhoto
from finetune.types import ReadOptions, Sample, Split

_THUMBNAIL_QUALITY = 80
_NUM_TRIES = 3
"""Files of a class that are tried until one can be read."""

MAX_SAMPLE_BYTES = 10_000_000
"""Larger photos are not offered, as all of them are kept in memory."""


_COMMON_NAMES = frozenset(
    ("data", "dataset", "datasets", "images", "imgs", "labels", "photos", "train", "training")
)
"""Names of data folders that tell nothing of the images."""


def find_data_name(model: Path) -> str:
    """Return the name of the data folder or CSV of a run; empty if it is unknown or says nothing.

    Args:
        model: Run folder, or a bundle, checkpoint or export in one.
    """
    try:
        run = read_run_images(model) or read_run_of_part(model)
    except FinetuneError:
        return ""
    if run is None:
        return ""
    name = run.path.stem if run.is_csv else run.path.name
    return "" if name.lower() in _COMMON_NAMES else name


def read_sample_photos(
    model: Path, *, count: int, options: ReadOptions
) -> tuple[list[SamplePhoto], str]:
    """Return held-out photos of a run, of all classes in turn, and why there are none.

    The test images are taken if there are any, else those of validation.

    Args:
        model: Run folder, or a bundle or checkpoint in one.
        count: Number of photos.
        options: How the images are read.
    """
    if count == 0:
        return [], ""
    try:
        run = read_run_images(model) or read_run_of_part(model)
    except FinetuneError as error:
        return [], f"No sample photos: {error}"
    if run is None:
        return [], ""
    split = Split.TEST if run.manifest.get_samples(Split.TEST) else Split.VAL
    photos = _read(run, run.manifest.get_samples(split), count, options)
    reason = "" if photos else f"No sample photos: the images of the run are not in {run.path}."
    return photos, reason


def _read(
    run: RunImages, samples: Sequence[Sample], count: int, options: ReadOptions
) -> list[SamplePhoto]:
    by_label: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_label[sample.label].append(sample)
    queues = list(by_label.values())
    photos: list[SamplePhoto] = []
    round_number = 0
    while len(photos) < count and round_number < max(map(len, queues), default=0):
        for queue in queues:
            if round_number < len(queue) and len(photos) < count:
                photo = _read_photo(run, queue[round_number], options)
                photos += [] if photo is None else [photo]
        round_number += 1
        if round_number >= _NUM_TRIES and not photos:
            break  # the images are elsewhere
    return photos


def _read_photo(run: RunImages, sample: Sample, options: ReadOptions) -> SamplePhoto | None:
    (path,) = run.manifest.resolve_paths([sample])
    buffer = BytesIO()
    try:
        if path.stat().st_size > MAX_SAMPLE_BYTES:
            return None
        content = path.read_bytes()
        read_thumbnail(path, options=options).convert("RGB").save(
            buffer, format="JPEG", quality=_THUMBNAIL_QUALITY
        )
    except (OSError, DataError):
        return None
    return SamplePhoto(path.name, _name_labels(sample), content, buffer.getvalue())


def _name_labels(sample: Sample) -> str:
    return ", ".join(sample.class_names) or "no label"
