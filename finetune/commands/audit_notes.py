"""Lines of a run on the audit of its images: findings, and classes that a split lacks."""

import shlex
from collections import Counter
from pathlib import Path

from finetune.audit.audit import UNDER_REPRESENTED_THRESHOLD, Audit, find_missing_classes
from finetune.data.manifest import Manifest
from finetune.data.multi_label.multi_hot import count_labels
from finetune.types import Reporter
from finetune.units import format_count


def summarise_audit(audit: Audit, path: Path, *, splits: str = "auto") -> list[str]:
    """Summarise an audit in at most two lines; in none if there are no findings.

    Args:
        audit: Audit of the images.
        path: Folder or CSV of the images.
        splits: Value of ``data.splits``.
    """
    findings = []
    if audit.duplicates:
        images = sum(len(group.samples) for group in audit.duplicates)
        num_across = sum("classes" in group.conflicts for group in audit.duplicates)
        wrong = f"; {num_across} across classes: a label is wrong" if num_across else ""
        groups = "group" if len(audit.duplicates) == 1 else "groups"
        findings.append(f"{len(audit.duplicates)} duplicate {groups} ({images} images{wrong})")
    few = audit.under_represented_classes
    if 0 < len(few) < len(audit.training_counts):  # if all classes are small, the user knows
        shown = ", ".join(f"{name} {audit.training_counts[name]}" for name in few[:5])
        classes = "class" if len(few) == 1 else "classes"
        findings.append(
            f"{len(few)} {classes} with fewer than {UNDER_REPRESENTED_THRESHOLD} images ({shown}"
            f"{', …' if len(few) > 5 else ''})"
        )
    if audit.suspicious_images:
        kinds = Counter(image.kind for image in audit.suspicious_images)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        findings.append(f"suspicious images: {shown}")
    lines = []
    if audit.duplicates is None:
        lines.append("Duplicates were not searched (data.leakage=ignore).")
    if findings:
        arguments = [str(path)] if splits == "auto" else [str(path), f"data.splits={splits}"]
        command = shlex.join(["finetune", "inspect", *arguments])
        lines.append(f"Found {'; '.join(findings)}. For details: {command}")
    return lines


def warn_about_missing_classes(manifest: Manifest, reporter: Reporter) -> None:
    """Warn of splits that lack the images of some classes."""
    for split, names in find_missing_classes(manifest).items():
        noun = "label" if manifest.is_multi_label else "class"
        total = count_labels(manifest.samples)
        shown = [f"'{name}': {format_count(total[name], 'image')}" for name in names[:5]]
        reporter.warn(
            f"{len(names)} of {format_count(len(manifest.classes), noun)} "
            f"{'has' if len(names) == 1 else 'have'} no {split.value} image "
            f"({', '.join(shown)}{', …' if len(names) > 5 else ''}): the metrics of this split "
            f"leave them out."
        )
