"""Section on the data: splits, classes, and what the audit found."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.audit.label_errors import describe_label_check
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import name_split
from finetune.units import format_count

MAX_OPEN_CLASSES = 30
"""Classes up to which the table is open."""

MAX_LISTED = 10
"""Findings of a kind that are listed."""

_LABELS_TO_CHECK = "Labels to check"

MIN_CLASS_IMAGES = 20
"""Training images below which a class is listed, as in the audit."""


@dataclass(frozen=True, slots=True)
class ClassCount:
    """Images of a class.

    Attributes:
        name: Class.
        counts: Images by split, in the order of the section's splits.
        fraction: Images of the first split, relative to the largest class.
    """

    name: str
    counts: tuple[int, ...]
    fraction: float


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Kind of finding, its number, and what was found.

    Attributes:
        kind: Name.
        count: Number of findings; None where it was not searched for.
        remark: Sentence; may be empty.
        columns: Header of the table of findings; empty without a table.
        rows: First findings.
        num_hidden: Findings that are not listed.
    """

    kind: str
    count: int | None
    remark: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    num_hidden: int = 0


@dataclass(frozen=True, slots=True)
class DataSection:
    """Images of a run.

    Attributes:
        splits: Names of the splits.
        totals: Images of each split.
        classes: Images of each class, the largest class first.
        noun: "class" or "label".
        imbalance_ratio: Images of the largest class per image of the smallest; None if unknown.
        is_open: Whether the table of classes is open.
        audit: Findings of the audit; empty without an audit.
    """

    splits: tuple[str, ...]
    totals: tuple[int, ...]
    classes: tuple[ClassCount, ...]
    noun: str
    imbalance_ratio: float | None
    is_open: bool
    audit: tuple[AuditLine, ...]


def build_data(facts: RunFacts) -> DataSection | None:
    """Return the splits, the classes and the audit of a run; None for a bundle without images."""
    counts = facts.class_counts
    if not counts:
        return None
    splits = tuple(counts)
    largest = max(counts[splits[0]], default=0) or 1
    rows = [
        ClassCount(name, numbers, numbers[0] / largest)
        for name, *values in zip(facts.classes, *counts.values(), strict=True)
        for numbers in [tuple(int(value) for value in values)]
    ]
    rows.sort(key=lambda row: -row.counts[0])
    smallest = min(counts[splits[0]], default=0)
    return DataSection(
        tuple(name_split(split) for split in splits),
        tuple(facts.num_images.get(split, 0) for split in splits),
        tuple(rows),
        "label" if facts.is_multi_label else "class",
        largest / smallest if smallest else None,
        len(rows) <= MAX_OPEN_CLASSES,
        () if facts.audit is None else tuple(_describe_audit(facts.audit, facts)),
    )


def _describe_audit(audit: Mapping[str, Any], facts: RunFacts) -> Iterator[AuditLine]:
    duplicates = audit.get("duplicates")
    yield _describe_duplicates(duplicates)
    if duplicates is not None:
        leaks = [group for group in duplicates if "splits" in group["conflicts"]]
        images = sum(len(group["paths"]) for group in leaks)
        remark = f"{format_count(images, 'image')} in these groups" if leaks else ""
        yield AuditLine("Duplicates across splits (leakage)", len(leaks), remark)
        conflicting = [group for group in duplicates if "classes" in group["conflicts"]]
        yield AuditLine("Duplicates with different classes", len(conflicting))
    yield _describe_label_errors(audit, facts)
    suspicious = audit.get("suspicious_images") or []
    kinds = Counter(image["kind"] for image in suspicious)
    yield _build_line(
        "Suspicious images",
        len(suspicious),
        ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
        ("image", "finding"),
        [(image["path"], image["detail"]) for image in suspicious],
    )
    yield _build_line("Rejected files", len(facts.rejected), "", ("file", "reason"), facts.rejected)
    if similar := audit.get("similar_classes"):
        yield AuditLine("Groups of similar class names", len(similar))
    if small := _find_small_classes(audit, facts):
        noun = "Labels" if facts.is_multi_label else "Classes"
        yield AuditLine(
            f"{noun} with fewer than {MIN_CLASS_IMAGES} training images",
            len(small),
            ", ".join(map(str, small[:MAX_LISTED])) + (" …" if len(small) > MAX_LISTED else ""),
        )


def _find_small_classes(audit: Mapping[str, Any], facts: RunFacts) -> list[str]:
    """Return the classes with fewer than 20 training images, the smallest first.

    The audit counts the images before they are split.
    """
    counts = facts.class_counts.get("train")
    if counts is None:
        return list(audit.get("under_represented_classes") or ())
    named = sorted((int(count), name) for name, count in zip(facts.classes, counts, strict=True))
    return [name for count, name in named if count < MIN_CLASS_IMAGES]


def _describe_duplicates(duplicates: Sequence[Mapping[str, Any]] | None) -> AuditLine:
    if duplicates is None:
        return AuditLine("Groups of duplicates", None)
    kinds = Counter(group["kind"] for group in duplicates)
    rows = [
        (
            f"{group['kind']}",
            ", ".join(group["paths"][:4]) + (" …" if len(group["paths"]) > 4 else ""),
            ", ".join(dict.fromkeys(map(str, group["labels"]))),
            ", ".join(dict.fromkeys(str(split) for split in group["splits"] if split)),
        )
        for group in duplicates
    ]
    return _build_line(
        "Groups of duplicates",
        len(duplicates),
        ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
        ("kind", "images", "class", "split"),
        rows,
    )


def _describe_label_errors(audit: Mapping[str, Any], facts: RunFacts) -> AuditLine:
    """Return the labels that heads contradict, with how far the heads can be trusted."""
    errors: Sequence[Mapping[str, Any]] | None = audit.get("label_errors")
    if errors is None:
        return AuditLine(_LABELS_TO_CHECK, None)
    judges = "heads" if facts.folds is None else "folds"
    trust = describe_label_check(
        audit.get("label_check"), judges=judges, is_multi_label=facts.is_multi_label
    )
    by = f"contradicted by {trust}; " if trust else "contradicted by the audit; "
    rows = [
        (
            error["path"],
            error["label"],
            error["predicted_label"],
            f"{error['predicted_probability']:.2f}",
        )
        for error in errors
    ]
    return _build_line(
        _LABELS_TO_CHECK,
        len(errors),
        "" if not errors else f"{by}they may be right: look at the images",
        ("image", "label", "predicted", "probability"),
        rows,
    )


def _build_line(
    kind: str,
    count: int,
    remark: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
) -> AuditLine:
    shown = tuple(tuple(map(str, row)) for row in rows[:MAX_LISTED])
    return AuditLine(kind, count, remark, columns if rows else (), shown, len(rows) - len(shown))
