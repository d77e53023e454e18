"""The first chapter of every story: images found, opened, split."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from finetune.config.schema import Config
from finetune.data.audit import audit_files
from finetune.data.manifest import Manifest, build_manifest
from finetune.data.scan import scan
from finetune.errors import ConfigError, DataError
from finetune.types import Rejected, Reporter, Sample, Split


def read_data(config: Config, path: Path, *, reporter: Reporter) -> tuple[Manifest, list[Rejected]]:
    """Return the images of a folder or CSV with their splits, and the files that were left out.

    Raises:
        DataError: See ``scan``, ``build_manifest``.
    """
    samples, root, rejected = readable_samples(
        path, max_pixels=int(config.data.max_megapixels * 1e6), reporter=reporter
    )
    _check_fractions(config, samples)
    minimum = config.data.min_images_per_class
    manifest = build_manifest(
        root,
        samples,
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.seed,
        min_images=None if minimum == "auto" else minimum,
    )
    _warn_of_gaps(manifest, reporter)
    return manifest, rejected


def _check_fractions(config: Config, samples: Sequence[Sample]) -> None:
    """Refuse shares for splits that the data bring along."""
    given = {sample.split for sample in samples}
    for key, split in (("val_fraction", Split.VAL), ("test_fraction", Split.TEST)):
        drawn = Split.VAL not in given and split not in given
        if key in config.data.model_fields_set and not drawn:
            raise ConfigError(
                f"data.{key} cannot apply: the data bring their own "
                f"{'/'.join(sorted(str(name) for name in given))} splits. Leave it out."
            )


def data_path(config: Config) -> Path:
    """Return the path of the images.

    Raises:
        ConfigError: None was given.
    """
    if config.data.path is None:
        raise ConfigError("No images: name a folder or a CSV, as in `finetune fit photos/`.")
    return Path(config.data.path).expanduser()


def readable_samples(
    path: Path, *, max_pixels: int, reporter: Reporter
) -> tuple[list[Sample], Path, list[Rejected]]:
    """Return the labelled images that read to their end, their root, and the files left out.

    Raises:
        DataError: There is none, or a class has none left.
    """
    found = scan(path)
    reporter.start("checking images", len(found.samples))
    good, bad = audit_files(
        found.root, found.samples, max_pixels=max_pixels, on_checked=reporter.advance
    )
    reporter.finish()
    rejected = [*found.rejected, *bad]
    if rejected:
        reporter.warn(f"{len(rejected)} files left out: {summary(rejected)}")
    lost = {s.label for s in found.samples} - {s.label for s in good}
    if lost:
        name = sorted(lost)[0]
        label_of = {sample.path: sample.label for sample in found.samples}
        example = next(entry for entry in bad if label_of[entry.path] == name)
        raise DataError(
            f"No image of class '{name}' can be read (as {example.path}: {example.reason}). Mend "
            f"the files or remove the class."
        )
    return good, found.root, rejected


def summary(rejected: Iterable[Rejected]) -> str:
    """Return the commonest reasons with their counts and one example each."""
    by_reason: dict[str, list[str]] = {}
    for entry in rejected:
        by_reason.setdefault(entry.reason.partition(" (")[0].partition(":")[0], []).append(
            entry.path
        )
    commonest = Counter({reason: len(paths) for reason, paths in by_reason.items()})
    return "; ".join(
        f"{count} {reason} (as {by_reason[reason][0]})"
        for reason, count in commonest.most_common(4)
    )


def _warn_of_gaps(manifest: Manifest, reporter: Reporter) -> None:
    for split in (Split.TRAIN, Split.VAL, Split.TEST):
        counts = manifest.class_counts(split)
        absent: Sequence[str] = [
            name for name, n in zip(manifest.classes, counts, strict=True) if n == 0
        ]
        if absent and any(counts):
            shown = ", ".join(f"'{name}'" for name in absent[:5])
            reporter.warn(
                f"{len(absent)} of {len(manifest.classes)} classes have no {split.value} image "
                f"({shown}): metrics leave them out"
            )
