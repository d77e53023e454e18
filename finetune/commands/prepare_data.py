"""The first chapter of every story: images found, opened, split."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.audit.audit import UNDER_REPRESENTED_THRESHOLD, Audit, audit_images
from finetune.audit.duplicate_cache import load_or_find_duplicates
from finetune.audit.duplicate_groups import assign_duplicate_groups
from finetune.audit.fingerprint_table import FingerprintTable, fingerprint_files
from finetune.audit.leakage import (
    describe_leaks,
    describe_splits_without_leaks,
    find_leaks,
    resolve_leaks,
)
from finetune.audit.near_duplicates import DuplicateGroup
from finetune.config.schema import Config
from finetune.data.cache.eviction import resolve_cache_root
from finetune.data.images.validate import filter_readable
from finetune.data.manifest import Manifest, build_manifest
from finetune.data.scan import Scan, scan
from finetune.errors import ConfigError, DataError
from finetune.types import RejectedFile, Reporter, Sample, Split


@dataclass(frozen=True, slots=True)
class ScannedDataset:
    """The images of a folder or CSV, looked at.

    Attributes:
        root: What relative paths are relative to.
        samples: Those that can be used, with their copies noted.
        fingerprints: At them.
        duplicates: Groups of their rows; None where they were not looked for.
        rejected: Files that were left out.
        empty_classes: Class and split of those of which no image can be used.
    """

    root: Path
    samples: list[Sample]
    fingerprints: FingerprintTable
    duplicates: list[DuplicateGroup] | None
    rejected: list[RejectedFile]
    empty_classes: tuple[tuple[str, Split | None], ...] = ()

    def audit(self) -> Audit:
        """Return what there is to know of them."""
        return audit_images(
            self.samples, self.fingerprints, self.duplicates, self.rejected, self.empty_classes
        )


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run is made of.

    Attributes:
        manifest: Its images with their splits.
        rejected: Files that were left out.
        audit: What was found in all of them.
    """

    manifest: Manifest
    rejected: list[RejectedFile]
    audit: Audit


def read_data(config: Config, path: Path, *, reporter: Reporter) -> RunData:
    """Return the images of a folder or CSV with their splits, and what was found in them.

    Raises:
        DataError: See ``scan``, ``build_manifest`` and ``data.leakage``.
    """
    found = scan_and_audit(config, path, reporter=reporter)
    _check_fractions(config, found.samples)
    minimum = config.data.min_images_per_class
    manifest = build_manifest(
        found.root,
        found.samples,
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.seed,
        min_images=None if minimum == "auto" else minimum,
    )
    whole = found.audit()
    for line in summarise_audit(whole, path):
        reporter.note(line)
    manifest, dropped = _apply_leak_policy(config, manifest, reporter)
    _warn_about_missing_classes(manifest, reporter)
    return RunData(manifest, [*found.rejected, *dropped], whole)


def scan_and_audit(
    config: Config, path: Path, *, reporter: Reporter, audit_only: bool = False
) -> ScannedDataset:
    """Return the labelled images below a path that can be used, and what was seen of them.

    Args:
        config: Says what is too large, where what was seen is kept, and whether copies matter.
        path: A folder or a CSV.
        reporter: Told of everything.
        audit_only: Look for copies even where nothing is done about them, and go on where a class has
            no image that can be used.

    Raises:
        DataError: There is none, or a class has none left.
    """
    found = scan(path, allow_empty=audit_only)
    good, looks, bad = fingerprint_samples(config, found.root, found.samples, reporter=reporter)
    rejected = _report_rejected(
        found, good, bad, reporter, fail_on_lost_class=not (audit_only and good)
    )
    copies: list[DuplicateGroup] | None = None
    if audit_only or config.data.leakage != "ignore":
        reporter.start("looking for copies", len(good))
        paths = [found.root / sample.path for sample in good]
        copies = load_or_find_duplicates(looks, paths, on_progress=reporter.advance)
        reporter.finish()
    present = {(sample.label, sample.split) for sample in good}
    gone = {(sample.label, sample.split) for sample in found.samples} - present
    empty = (*found.empty_classes, *sorted(gone, key=str))
    return ScannedDataset(
        found.root, assign_duplicate_groups(good, copies or ()), looks, copies, rejected, empty
    )


def fingerprint_samples(
    config: Config, root: Path, samples: Sequence[Sample], *, reporter: Reporter
) -> tuple[list[Sample], FingerprintTable, list[RejectedFile]]:
    """Return the samples whose file can be used, a look at each, and the others' reasons.

    Args:
        config: Says what is too large, and where what was seen is kept: beside the features,
            whether pixels are or not.
        root: What relative paths are relative to.
        samples: What to look at.
        reporter: Told of each file.
    """
    return fingerprint_files(
        root,
        samples,
        max_pixels=int(config.data.max_megapixels * 1e6),
        stores_dir=resolve_cache_root(config.data.cache),
        limit_bytes=round(config.cache.max_gb * 1e9),
        reporter=reporter,
    )


def summarise_audit(audit: Audit, path: Path) -> list[str]:
    """Return what an audit comes to in a line or two; none where there is nothing to say."""
    parts = []
    if audit.duplicates:
        images = sum(len(group.samples) for group in audit.duplicates)
        across = sum("classes" in group.conflicts for group in audit.duplicates)
        wrong = f"; {across} across classes: a label is wrong" if across else ""
        groups = "group" if len(audit.duplicates) == 1 else "groups"
        parts.append(f"{len(audit.duplicates)} {groups} of copies ({images} images{wrong})")
    few = audit.under_represented_classes
    if 0 < len(few) < len(audit.training_counts):  # where all are, it is no surprise
        named = ", ".join(f"{name} {audit.training_counts[name]}" for name in few[:5])
        classes = "class" if len(few) == 1 else "classes"
        parts.append(
            f"{len(few)} {classes} of fewer than {UNDER_REPRESENTED_THRESHOLD} images ({named}"
            f"{', …' if len(few) > 5 else ''})"
        )
    if audit.suspicious_images:
        kinds = Counter(suspect.kind for suspect in audit.suspicious_images)
        parts.append(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    lines = (
        ["Copies were not looked for (data.leakage=ignore)."] if audit.duplicates is None else []
    )
    if parts:
        see = f"See: finetune inspect {shlex.quote(str(path))}"
        lines.append(f"Found {'; '.join(parts)}. {see}")
    return lines


def _apply_leak_policy(
    config: Config, manifest: Manifest, reporter: Reporter
) -> tuple[Manifest, list[RejectedFile]]:
    """Do what ``data.leakage`` says about held-out images whose copies are seen before."""
    policy = config.data.leakage
    leaks = find_leaks(manifest)
    if not leaks or policy == "ignore":
        return manifest, []
    words = describe_leaks(manifest, leaks)
    if policy == "error":
        raise DataError(f"{words}. Mend the splits, or take data.leakage=drop, move or warn.")
    if policy == "warn":
        reporter.warn(
            f"{words}: what is measured on them flatters the model. "
            f"{describe_splits_without_leaks(manifest, leaks)}; data.leakage=drop or move mends the splits."
        )
        return manifest, []
    mended, dropped = resolve_leaks(manifest, policy)
    lost = "1 image is" if len(dropped) == 1 else f"{len(dropped)} images are"
    what = f"{lost} left out" if policy == "drop" else "all of them train"
    reporter.note(f"{words}: {what} (data.leakage={policy}).")
    return mended, dropped


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


def resolve_data_path(config: Config) -> Path:
    """Return the path of the images.

    Raises:
        ConfigError: None was given.
    """
    if config.data.path is None:
        raise ConfigError("No images: name a folder or a CSV, as in `finetune fit photos/`.")
    return Path(config.data.path).expanduser()


def resolve_if_path(name: str) -> str:
    """Return a file or folder by its whole path, so that a resume finds it from anywhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and ("/" in name or path.is_file()) else name


def find_readable_samples(
    path: Path, *, max_pixels: int, reporter: Reporter
) -> tuple[list[Sample], Path, list[RejectedFile]]:
    """Return the labelled images that read to their end, their root, and the files left out.

    Raises:
        DataError: There is none, or a class has none left.
    """
    found = scan(path)
    reporter.start("checking images", len(found.samples))
    good, bad = filter_readable(
        found.root, found.samples, max_pixels=max_pixels, on_progress=reporter.advance
    )
    reporter.finish()
    return good, found.root, _report_rejected(found, good, bad, reporter)


def _report_rejected(
    found: Scan,
    good: Sequence[Sample],
    bad: Sequence[RejectedFile],
    reporter: Reporter,
    *,
    fail_on_lost_class: bool = True,
) -> list[RejectedFile]:
    """Return all files that were left out, said once.

    Raises:
        DataError: A class has none left.
    """
    rejected = [*found.rejected, *bad]
    if rejected:
        reporter.warn(
            f"{len(rejected)} file{'s' if len(rejected) > 1 else ''} left out: {summarise_rejected(rejected)}"
        )
    lost = {s.label for s in found.samples} - {s.label for s in good}
    if lost and fail_on_lost_class:
        name = sorted(lost)[0]
        label_of = {sample.path: sample.label for sample in found.samples}
        example = next(entry for entry in bad if label_of[entry.path] == name)
        raise DataError(
            f"No image of class '{name}' can be read (as {example.path}: {example.reason}). Mend "
            f"the files or remove the class."
        )
    return rejected


def summarise_rejected(rejected: Iterable[RejectedFile]) -> str:
    """Return the commonest reasons with their counts and one example each."""
    by_reason: dict[str, list[str]] = {}
    for entry in rejected:
        by_reason.setdefault(entry.reason.partition(" (")[0].partition(":")[0], []).append(
            entry.path
        )
    commonest = Counter({reason: len(paths) for reason, paths in by_reason.items()}).most_common()
    shown = [f"{count} {reason} (as {by_reason[reason][0]})" for reason, count in commonest[:4]]
    if rest := sum(count for _, count in commonest[4:]):
        shown.append(f"{rest} for other reasons")
    return "; ".join(shown)


def _warn_about_missing_classes(manifest: Manifest, reporter: Reporter) -> None:
    for split in (Split.TRAIN, Split.VAL, Split.TEST):
        counts = manifest.count_per_class(split)
        absent: Sequence[str] = [
            name for name, n in zip(manifest.classes, counts, strict=True) if n == 0
        ]
        if absent and any(counts):
            shown = ", ".join(f"'{name}'" for name in absent[:5])
            reporter.warn(
                f"{len(absent)} of {len(manifest.classes)} classes have no {split.value} image "
                f"({shown}): metrics leave them out"
            )
