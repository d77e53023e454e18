"""Summary of an audit as text, 80 columns wide."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from finetune.audit.label_errors import describe_label_check
from finetune.cli.render.multi_label.label_table import describe_label_statistics
from finetune.cli.render.plan_table import format_bits
from finetune.data.layouts.class_names import describe_similar_classes
from finetune.data.layouts.name_groups import describe_groups
from finetune.units import format_bytes, format_count

_MAX_CLASSES = 12
_MAX_GROUPS = 4
_MAX_HARMLESS_GROUPS = 2
_MAX_EXAMPLES = 3
_BAR_WIDTH = 30
_WIDTH = 80


def describe_audit(tree: Mapping[str, Any]) -> list[str]:
    """Return the lines of the summary.

    Args:
        tree: Result of ``Audit.to_json``.
    """
    return [
        *_describe_counts(tree),
        "",
        *_describe_sizes(tree),
        *_describe_pixel_values(tree),
        *_describe_groups(tree.get("groups")),
        *_describe_unreadable(tree["unreadable"]),
        *_describe_similar_classes(tree.get("similar_classes", ())),
        "",
        *_describe_duplicates(tree["duplicates"]),
        *_describe_suspicious_images(tree["suspicious_images"]),
        *_describe_label_errors(tree["label_errors"], _describe_trust(tree)),
        "",
        *_describe_advice(tree["advice"]),
        *_describe_single_class(tree["class_counts"]),
    ]


def _describe_counts(tree: Mapping[str, Any]) -> list[str]:
    """Return the header, a bar chart of the classes, and the imbalance ratio."""
    splits = tree["class_counts"]
    labels = tree.get("multi_label")
    num_images = (
        {name: sum(counts.values()) for name, counts in splits.items()}
        if labels is None
        else labels["num_images"]
    )
    shown = "; ".join(
        f"{num_images[name]:,} {'without a split' if name == 'all' else name}" for name in splits
    )
    first = next((name for name in ("train", "all") if name in splits), next(iter(splits)))
    counts = splits[first]
    total = num_images[first]
    if len(splits) == 1:
        shown = format_count(total, "image") + ("" if first == "all" else f" of {first}")
    else:
        shown = f"{format_count(tree['num_images'], 'image')} ({shown})"
    noun = "class" if labels is None else "label"
    lines = [f"{shown}, {format_count(len(counts), noun)}", ""]
    order = sorted(counts, key=lambda name: -counts[name])
    largest = counts[order[0]]
    hidden = max(0, len(order) - _MAX_CLASSES)
    kept = _MAX_CLASSES // 2
    rows = order if not hidden else [*order[:kept], None, *order[-kept:]]
    width = min(30, max(map(cell_len, order)))
    others = [split for split in splits if split != first]
    bar_width = _BAR_WIDTH - 8 * len(others)
    if others:
        header = "".join(f"{split:>8}" for split in others)
        lines.append(f"  {'':<{width}} {first:>8}{header}  fraction of {first}")
    for name in rows:
        if name is None:
            lines.append(f"  … {hidden} more")
            continue
        count = counts[name]
        bar = "█" * max(1, round(bar_width * count / largest)) if count else ""
        held_out = "".join(f"{splits[split].get(name, 0):>8,}" for split in others)
        lines.append(
            f"  {_fit_to_width(name, width)} {count:>8,}{held_out} {count / total:>6.1%} {bar}"
        )
    under_represented = tree["under_represented_classes"]
    names = ", ".join(under_represented[:3]) + (", …" if len(under_represented) > 3 else "")
    few = f"; {len(under_represented)} with fewer than 20 images: {names}"
    ratio = f"imbalance ratio {tree['imbalance_ratio']:g}"
    lines.append(ratio + (few if under_represented else ""))
    return [*lines, *describe_label_statistics(labels)]


def _describe_sizes(tree: Mapping[str, Any]) -> list[str]:
    """Return the range of the image sizes, the image modes and the median file size."""
    quantiles = tree["size_quantiles"]
    low, _, median, _, high = (
        f"{width:.0f}x{height:.0f}"
        for width, height in zip(quantiles["width"], quantiles["height"], strict=True)
    )
    sizes = f"all {median}" if low == high else f"median {median}, from {low} to {high}"
    modes = ", ".join(f"{count:,} {mode}" for mode, count in tree["image_modes"].items())
    size = format_bytes(quantiles["num_bytes"][2])
    return [f"sizes       {sizes}", f"files       {modes}; median {size}"]


def _describe_pixel_values(tree: Mapping[str, Any]) -> list[str]:
    """Return the bits of 16-bit files that do not state them, wrapped; nothing without such."""
    files = tree["sixteen_bit_files"]
    if files is None:
        return []
    return textwrap.wrap(
        format_bits(files, tree["pixel_range"]),
        _WIDTH,
        initial_indent=f"{'values':<12}",
        subsequent_indent=" " * 12,
    )


def _describe_groups(groups: Mapping[str, Any] | None) -> list[str]:
    """Return the numbers of the groups, and those that given splits divide; nothing without."""
    if groups is None:
        return []
    text = f"{'groups':<12}{describe_groups(groups)}"
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=" " * 12)
    if groups["num_divided"]:
        one, other = groups["divided_example"]
        lines.append(f"  {groups['num_divided']:,} across splits (leakage), such as")
        lines += [f"      {one}", f"    = {other}"]
    return lines


def _describe_unreadable(entries: Sequence[Mapping[str, str]]) -> list[str]:
    shown = (f"    {entry['path']}: {entry['reason']}" for entry in entries[:_MAX_EXAMPLES])
    return [
        f"unreadable  {len(entries) or 'none'}",
        *shown,
        *_describe_remainder(len(entries) - _MAX_EXAMPLES),
    ]


def _describe_similar_classes(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the classes whose names look alike, wrapped."""
    lines: list[str] = []
    for group in groups[:_MAX_GROUPS]:
        text = f"look alike: {describe_similar_classes(group['names'], group['num_images'])}"
        head = f"{'' if lines else 'class names':<12}"
        lines += textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * 12)
    return [*lines, *_describe_remainder(len(groups) - _MAX_GROUPS, indent=12)]


def _describe_remainder(count: int, indent: int = 4) -> list[str]:
    """Return the line that ends a list of which ``count`` entries are not shown."""
    return [f"{'':<{indent}}… and {count:,} more, in audit.csv"] if count > 0 else []


def _describe_duplicates(groups: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if groups is None:
        return ["duplicates  not searched"]
    if not groups:
        return ["duplicates  none"]
    images = sum(len(group["paths"]) for group in groups)
    kinds = Counter(group["kind"] for group in groups)
    lines = [
        f"duplicates  {format_count(images, 'image')} in {format_count(len(groups), 'group')}: "
        f"{kinds['exact']} exact, {kinds['near']} near"
    ]
    # the sides of a conflict differ in the third column
    conflicts = (
        ("splits", "across splits (leakage)", "splits"),
        ("classes", "across classes (a label is wrong)", "labels"),
        (None, "within a class (harmless in one split)", "paths"),
    )
    # numbered as in audit.csv and as the pictures
    by_severity = sorted(
        groups, key=lambda g: ("splits" not in g["conflicts"], "classes" not in g["conflicts"])
    )
    numbered = list(enumerate(by_severity, 1))
    for conflict, meaning, differing_key in conflicts:
        matching = [
            (number, group)
            for number, group in numbered
            if (conflict in group["conflicts"] if conflict else not group["conflicts"])
        ]
        if matching:
            lines.append(f"  {len(matching)} {meaning}")
        max_shown = _MAX_GROUPS if conflict else _MAX_HARMLESS_GROUPS
        for number, group in matching[:max_shown]:
            lines += _describe_duplicate_pair(group, number, differing_key)
        lines += _describe_remainder(len(matching) - max_shown)
    return lines


def _describe_duplicate_pair(
    group: Mapping[str, Any], number: int, differing_key: str
) -> list[str]:
    """Return two images of a group that differ in the given key, on one line if they fit."""
    values = group[differing_key]
    other = next(row for row, value in enumerate(values) if value != values[0])
    paths = group["paths"]
    more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    start = f"{number:>4}  {group['kind']:<5}  "
    head = f"{start}{paths[0]}"
    tail = f"= {paths[other]}{more}"
    line = f"{head} {tail}"
    return [line] if cell_len(line) <= _WIDTH else [head, f"{'':<{len(start) - 2}}{tail}"]


def _describe_suspicious_images(suspicious_images: Sequence[Mapping[str, str]]) -> list[str]:
    if not suspicious_images:
        return ["suspicious  none"]
    kinds = Counter(image["kind"] for image in suspicious_images)
    width = max(10, *map(len, kinds))
    lines = [f"suspicious  {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}"]
    for kind, _ in kinds.most_common():
        of_kind = [image for image in suspicious_images if image["kind"] == kind]
        lines += [
            f"    {kind:<{width}}  {image['path']}: {image['detail']}"
            for image in of_kind[:_MAX_EXAMPLES]
        ]
        lines += _describe_remainder(len(of_kind) - _MAX_EXAMPLES)
    return lines


def _describe_trust(tree: Mapping[str, Any]) -> str:
    """Return how accurate the heads are that contradict labels; empty if it is unknown."""
    return describe_label_check(
        tree.get("label_check"), is_multi_label=tree.get("multi_label") is not None
    )


def _describe_label_errors(
    label_errors: Sequence[Mapping[str, Any]] | None, trust: str
) -> list[str]:
    if label_errors is None:
        return ["labels      not checked; --backbone NAME finds label errors and more duplicates"]
    if not label_errors:
        return ["labels      no likely errors"]
    shown = (
        f"    {error['path']}: labelled {error['label']} (p={error['label_probability']:.2f}), "
        f"predicted {error['predicted_label']} (p={error['predicted_probability']:.2f})"
        for error in label_errors[:_MAX_GROUPS]
    )
    return [
        f"labels      {format_count(len(label_errors), 'possible error')}, the most likely first",
        *([f"    by {trust}"] if trust else []),
        *shown,
        *_describe_remainder(len(label_errors) - _MAX_GROUPS),
    ]


def _describe_single_class(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a warning if there is only one class."""
    names = {name for of_split in counts.values() for name in of_split}
    return ["one class   a classifier needs at least two"] if len(names) < 2 else []


def _describe_advice(advice: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return recommended options with their reasons, wrapped."""
    options = [_format_option(one["option"], one["value"]) for one in advice]
    width = max(map(len, options), default=0)
    lines = []
    for number, (option, one) in enumerate(zip(options, advice, strict=True)):
        head = f"{'' if number else 'advice':<10}  {option:<{width}}  "
        indent = " " * len(head)
        lines += textwrap.wrap(one["reason"], _WIDTH, initial_indent=head, subsequent_indent=indent)
    return lines


def _format_option(name: str, value: object) -> str:
    """Return an option or a config key with its value, as typed on the command line."""
    return f"{name} {value}" if name.startswith("--") else f"{name}={value}"


def _fit_to_width(name: str, width: int) -> str:
    """Return a name padded or cut to terminal columns; some letters take two."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if cell_len(name) <= width:
        return set_cell_size(name, width)
    return set_cell_size(name, width - 1) + "…"
