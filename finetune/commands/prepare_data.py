"""Preparation of a dataset: scan, audit and split."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from finetune.audit.audit import Audit, audit_images
from finetune.audit.duplicate_cache import load_or_find_duplicates
from finetune.audit.duplicate_groups import assign_duplicate_groups
from finetune.audit.fingerprint_table import FingerprintTable, fingerprint_files
from finetune.audit.leakage import apply_leakage_policy
from finetune.audit.near_duplicates import DuplicateGroup
from finetune.commands.audit_notes import summarise_audit, warn_about_missing_classes
from finetune.commands.rejected_files import RangeCheck, report_rejected
from finetune.config.schema import Config
from finetune.data.cache.eviction import resolve_cache_root
from finetune.data.fold_split import merge_validation
from finetune.data.images.bit_depth import DatasetBits
from finetune.data.images.validate import filter_readable
from finetune.data.layouts.class_names import describe_similar_classes, find_similar_classes
from finetune.data.layouts.name_groups import (
    GroupSummary,
    describe_undivided_classes,
    summarise_groups,
)
from finetune.data.layouts.split_names import SplitSetting
from finetune.data.layouts.table_options import DEFAULT_TABLE_OPTIONS, TableOptions
from finetune.data.manifest import Manifest, build_manifest
from finetune.data.scan import Scan, scan
from finetune.data.split import find_drawn_splits
from finetune.errors import ConfigError
from finetune.system.given_paths import exists
from finetune.types import ReadOptions, RejectedFile, Reporter, Sample, Split
from finetune.units import format_count


@dataclass(frozen=True, slots=True)
class ScannedDataset:
    """Readable images of a folder or CSV, with their fingerprints.

    Attributes:
        root: Folder to which relative paths refer.
        samples: Readable images, with their digests and duplicate groups.
        fingerprints: Their fingerprints.
        duplicates: Groups of their rows; None if they were not searched.
        rejected: Rejected files.
        empty_classes: Class and split of those without a readable image.
        layout: Lines that say how the folder or CSV was read.
        groups: Numbers of their user-defined groups; None without groups.
    """

    root: Path
    samples: list[Sample]
    fingerprints: FingerprintTable
    duplicates: list[DuplicateGroup] | None
    rejected: list[RejectedFile]
    empty_classes: tuple[tuple[str, Split | None], ...] = ()
    layout: tuple[str, ...] = ()
    groups: GroupSummary | None = None

    def audit(self) -> Audit:
        """Audit the images."""
        audit = audit_images(
            self.samples, self.fingerprints, self.duplicates, self.rejected, self.empty_classes
        )
        return replace(audit, layout=self.layout, pixel_range=self.pixel_range, groups=self.groups)

    @property
    def pixel_range(self) -> str:
        """Value of ``data.pixel_range`` without auto."""
        return str(self.fingerprints.options.pixel_range or "full")


@dataclass(frozen=True, slots=True)
class RunData:
    """Data of a run.

    Attributes:
        manifest: Images with their splits.
        rejected: Rejected files, and the images that ``data.leakage`` drops.
        audit: Audit of all images.
    """

    manifest: Manifest
    rejected: list[RejectedFile]
    audit: Audit


def read_data(config: Config, path: Path, *, reporter: Reporter) -> RunData:
    """Scan, audit and split the images of a folder or CSV; for folds, into training and test.

    Raises:
        ConfigError: A fraction is set for a split that the data bring along.
        DataError: See ``scan``, ``build_manifest`` and ``apply_leakage_policy``.
    """
    dataset = scan_and_audit(config, path, reporter=reporter)
    for similar in find_similar_classes(dataset.samples):
        shown = describe_similar_classes(similar.names, similar.num_images)
        reporter.warn(
            f"class names look alike: {shown}. If they are one class, rename its folders or labels"
        )
    _check_fractions(config, {sample.split for sample in dataset.samples})
    minimum = config.data.min_images_per_class
    has_folds = config.cross_validation.num_folds is not None
    num_val = sum(sample.split is Split.VAL for sample in dataset.samples)
    if has_folds and num_val:
        images = format_count(num_val, "image")
        reporter.note(f"The {images} of the val split are divided by the folds, as those of train.")
    manifest = build_manifest(
        dataset.root,
        merge_validation(dataset.samples) if has_folds else dataset.samples,
        val_fraction=0.0 if has_folds else config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.split_seed,
        min_images=None if minimum == "auto" else minimum,
        allow_divided_groups=config.data.group_by is not None,
    )
    audit = dataset.audit()
    for line in summarise_audit(audit, path, splits=config.data.splits):
        reporter.note(line)
    manifest, dropped = apply_leakage_policy(manifest, config.data.leakage, reporter)
    warn_about_missing_classes(manifest, reporter)
    return RunData(manifest, [*dataset.rejected, *dropped], audit)


def scan_and_audit(
    config: Config, path: Path, *, reporter: Reporter, audit_only: bool = False
) -> ScannedDataset:
    """Return the readable images below a path, with their fingerprints and duplicates.

    Args:
        config: ``data.splits``, ``data.max_megapixels``, ``data.leakage`` and the cache.
        path: Folder or CSV.
        reporter: Receives progress, notes and warnings.
        audit_only: Search duplicates even with ``data.leakage=ignore``, and accept classes without
            a readable image as long as there is any.

    Raises:
        DataError: There is no readable image, or none of a class.
    """
    scanned = scan(
        path,
        splits=config.data.split_setting,
        allow_empty=audit_only,
        tables=build_table_options(config),
        reporter=reporter,
    )
    for line in scanned.notes:
        reporter.note(line)
    readable, fingerprints, unreadable = fingerprint_samples(
        config, scanned.root, scanned.samples, reporter=reporter
    )
    rejected = report_rejected(
        scanned, readable, unreadable, reporter, fail_on_lost_class=not (audit_only and readable)
    )
    duplicates: list[DuplicateGroup] | None = None
    if audit_only or config.data.leakage != "ignore":
        reporter.start("searching near-duplicates", len(readable))
        paths = [scanned.root / sample.path for sample in readable]
        duplicates = load_or_find_duplicates(fingerprints, paths, on_progress=reporter.advance)
        reporter.finish()
    present, listed = (
        {(name, sample.split) for sample in samples for name in sample.class_names}
        for samples in (readable, scanned.samples)
    )
    lost = listed - present
    if audit_only and (text := describe_undivided_classes(readable)):
        hint = "change the pattern of groups" if config.data.group_by else "divide the groups"
        reporter.warn(f"{text}: {hint}")
    readable = [
        replace(sample, digest=digest)
        for sample, digest in zip(readable, fingerprints.read_digests(), strict=True)
    ]
    return ScannedDataset(
        scanned.root,
        assign_duplicate_groups(readable, duplicates or ()),
        fingerprints,
        duplicates,
        rejected,
        (*scanned.empty_classes, *sorted(lost, key=str)),
        scanned.notes,
        summarise_groups(readable, config.data.group_by),
    )


def fingerprint_samples(
    config: Config, root: Path, samples: Sequence[Sample], *, reporter: Reporter
) -> tuple[list[Sample], FingerprintTable, list[RejectedFile]]:
    """Return the readable samples, their fingerprints, and the rejected files with their reasons.

    With ``data.pixel_range=auto`` a dataset of fewer than 16 bits in 16-bit files is read again in
    the range that holds all of its values; ``options`` of the fingerprints have it.

    Args:
        config: ``data.max_megapixels``, ``data.pixel_range`` and the cache; fingerprints are stored
            beside the features, even if pixels are not cached.
        root: Folder to which relative paths refer.
        samples: Samples whose files are read.
        reporter: Receives the progress, file by file.
    """
    compute = partial(
        fingerprint_files,
        root,
        samples,
        stores_dir=resolve_cache_root(config.data.cache),
        limit_bytes=config.cache.max_bytes,
        reporter=reporter,
    )
    options = config.data.read_options
    result = compute(options=options)
    if config.data.pixel_range != "auto":
        return result
    bits = DatasetBits.from_max_values(result[1].read_column("max_value"))
    if bits is None or bits.pixel_range is None:
        return result
    return compute(options=replace(options, pixel_range=bits.pixel_range))


def _check_fractions(config: Config, given: Collection[Split | None]) -> None:
    """Check that the data do not bring along a split for which a fraction is set.

    Raises:
        ConfigError: They do.
    """
    drawn = find_drawn_splits(given)
    for key, split in (("val_fraction", Split.VAL), ("test_fraction", Split.TEST)):
        if key in config.data.model_fields_set and split not in drawn:
            names = "/".join(sorted(str(name) for name in given))
            raise ConfigError(
                f"data.{key} cannot apply: the data have their own {names} splits. Remove the "
                f"option."
            )


def build_table_options(config: Config) -> TableOptions:
    """Return which columns of tables hold what, and how images are grouped by their names."""
    data = config.data
    return TableOptions(
        image_column=data.image_column,
        label_column=data.label_column,
        group_column=data.group_column,
        group_by=data.group_by,
        cache=data.cache,
        labels=data.label_format,
    )


def resolve_data_path(config: Config) -> Path:
    """Return the path of the images.

    Raises:
        ConfigError: No path is set.
    """
    if config.data.path is None:
        raise ConfigError("No images: name a folder or a CSV, as in `finetune fit photos/`.")
    return Path(config.data.path).expanduser()


def resolve_if_path(name: str) -> str:
    """Return the absolute path of a file or folder, valid in any folder that a run resumes from.

    Names without a slash that are not files are returned unchanged.
    """
    path = Path(name).expanduser()
    return str(path.resolve()) if exists(path) and ("/" in name or path.is_file()) else name


def find_readable_samples(
    path: Path,
    *,
    options: ReadOptions,
    reporter: Reporter,
    splits: SplitSetting = "auto",
    tables: TableOptions = DEFAULT_TABLE_OPTIONS,
    scanned: Scan | None = None,
) -> tuple[list[Sample], Path, list[RejectedFile]]:
    """Return the readable labelled images, their root, and the rejected files.

    Args:
        path: Folder or CSV.
        options: How image files are read.
        reporter: Receives progress, notes and warnings.
        splits: How splits are found, see ``scan``.
        tables: Columns and labels of tables.
        scanned: Contents of the path, if they are known and their notes are reported.

    Raises:
        DataError: There is no labelled image, or no readable one of a class.
    """
    if scanned is None:
        scanned = scan(path, splits=splits, tables=tables, reporter=reporter)
        for line in scanned.notes:
            reporter.note(line)
    elif scanned.empty_classes:
        scan(path, splits=splits, tables=tables)  # raises what a class without images means
    reporter.start("checking images", len(scanned.samples))
    values = RangeCheck(options.pixel_range)
    readable, unreadable = filter_readable(
        scanned.root,
        scanned.samples,
        options=options,
        on_progress=reporter.advance,
        on_values=values.add,
    )
    reporter.finish()
    values.report(reporter)
    return readable, scanned.root, report_rejected(scanned, readable, unreadable, reporter)
