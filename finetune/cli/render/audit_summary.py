"""An audit in words, 80 columns wide, that a person reads in half a minute."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

_MAX_CLASSES = 12
_MAX_GROUPS = 4
_MAX_EXAMPLES = 3
_BAR_WIDTH = 30
_WIDTH = 80


def describe_audit(tree: Mapping[str, Any]) -> list[str]:
    """Return the page of an audit, from its JSON values."""
    return [
        *_describe_counts(tree),
        "",
        *_describe_sizes(tree),
        *_describe_unreadable(tree["unreadable"]),
        "",
        *_describe_duplicates(tree["copies"]),
        *_describe_suspicious_images(tree["suspicious"]),
        *_describe_label_errors(tree["labels"]),
        "",
        *_describe_advice(tree["advice"]),
        *_describe_single_class(tree["counts"]),
    ]


def _describe_counts(tree: Mapping[str, Any]) -> list[str]:
    splits = tree["counts"]
    shown = "; ".join(
        f"{sum(counts.values()):,} {'without a split' if name == 'all' else name}"
        for name, counts in splits.items()
    )
    first = next((name for name in ("train", "all") if name in splits), next(iter(splits)))
    counts = splits[first]
    total = sum(counts.values())
    if len(splits) == 1:
        shown = _format_count(total, "image") + ("" if first == "all" else f" of {first}")
    else:
        shown = f"{_format_count(tree['num_images'], 'image')} ({shown})"
    lines = [f"{shown}, {_format_count(len(counts), 'class')}", ""]
    order = sorted(counts, key=lambda name: -counts[name])
    largest = counts[order[0]]
    hidden = max(0, len(order) - _MAX_CLASSES)
    kept = _MAX_CLASSES // 2
    rows = order if not hidden else [*order[:kept], None, *order[-kept:]]
    width = min(30, max(map(cell_len, order)))
    others = [split for split in splits if split != first]
    long = _BAR_WIDTH - 8 * len(others)
    if others:
        heads = "".join(f"{split:>8}" for split in others)
        lines.append(f"  {'':<{width}} {first:>8}{heads}  share of {first}")
    for name in rows:
        if name is None:
            lines.append(f"  … {hidden} more")
            continue
        count = counts[name]
        bar = "█" * max(1, round(long * count / largest)) if count else ""
        held_out = "".join(f"{splits[split].get(name, 0):>8,}" for split in others)
        lines.append(
            f"  {_fit_to_width(name, width)} {count:>8,}{held_out} {count / total:>6.1%} {bar}"
        )
    starved = tree["starved_classes"]
    named = ", ".join(starved[:3]) + (", …" if len(starved) > 3 else "")
    few = f"; {len(starved)} with fewer than 20 images: {named}" if starved else ""
    lines.append(f"largest/smallest {tree['imbalance_ratio']:g}{few}")
    return lines


def _describe_sizes(tree: Mapping[str, Any]) -> list[str]:
    low, _, median, _, high = zip(tree["sizes"]["width"], tree["sizes"]["height"], strict=True)
    size = "{:.0f}x{:.0f}"
    bounds = (
        f"all {size.format(*median)}"
        if low == high
        else f"half below {size.format(*median)}, from {size.format(*low)} to {size.format(*high)}"
    )
    modes = ", ".join(f"{count:,} {mode}" for mode, count in tree["modes"].items())
    kilobytes = tree["sizes"]["bytes"][2] / 1000
    return [f"sizes       {bounds}", f"files       {modes}; {kilobytes:,.0f} kB in the middle"]


def _describe_unreadable(entries: Sequence[Mapping[str, str]]) -> list[str]:
    shown = (f"    {entry['path']}: {entry['reason']}" for entry in entries[:_MAX_EXAMPLES])
    return [
        f"unreadable  {len(entries) or 'none'}",
        *shown,
        *_describe_remainder(len(entries) - _MAX_EXAMPLES),
    ]


def _describe_remainder(count: int, indent: int = 4) -> list[str]:
    """Return the line that ends a list from which so many are left out."""
    return [f"{'':<{indent}}… and {count:,} more, in audit.csv"] if count > 0 else []


def _describe_duplicates(groups: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if groups is None:
        return ["copies      not looked for"]
    if not groups:
        return ["copies      none"]
    images = sum(len(group["paths"]) for group in groups)
    kinds = Counter(group["kind"] for group in groups)
    lines = [
        f"copies      {_format_count(images, 'image')} in {_format_count(len(groups), 'group')}: "
        f"{kinds['exact']} exact, {kinds['near']} near"
    ]
    telling = (
        ("across splits", "leaks: they are seen before they are measured", "splits"),
        ("across classes", "one label is wrong", "labels"),
        ("inside a class", "harmless on one side of a split", "paths"),
    )
    # numbered as in audit.csv and among the pictures
    order = sorted(
        groups,
        key=lambda g: ("across splits" not in g["where"], "across classes" not in g["where"]),
    )
    for where, meaning, unlike in telling:
        here = [(n, group) for n, group in enumerate(order, 1) if where in group["where"]]
        if here:
            lines.append(f"  {len(here)} {where} ({meaning})")
        most = _MAX_GROUPS if where != "inside a class" else 2
        for number, group in here[:most]:
            lines += _describe_duplicate_pair(group, number, unlike)
        lines += _describe_remainder(len(here) - most)
    return lines


def _describe_duplicate_pair(
    group: Mapping[str, Any], number: int, differing_key: str
) -> list[str]:
    """Return two images of a group that differ in splits, labels or paths, on a line if it can."""
    sides = group[differing_key]
    other = next(row for row, side in enumerate(sides) if side != sides[0])
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
    kinds = Counter(suspect["kind"] for suspect in suspicious_images)
    lines = [f"suspicious  {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}"]
    for kind, _ in kinds.most_common():
        of_kind = [suspect for suspect in suspicious_images if suspect["kind"] == kind]
        lines += [
            f"    {kind:<10}  {suspect['path']}: {suspect['detail']}"
            for suspect in of_kind[:_MAX_EXAMPLES]
        ]
        lines += _describe_remainder(len(of_kind) - _MAX_EXAMPLES)
    return lines


def _describe_label_errors(label_errors: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if label_errors is None:
        return ["labels      not checked; --backbone NAME looks for doubts and cut copies"]
    if not label_errors:
        return ["labels      none in doubt"]
    shown = (
        f"    {one['path']}: {one['likely']} {one['likely_probability']:.2f}, "
        f"{one['label']} {one['probability']:.2f}"
        for one in label_errors[:_MAX_GROUPS]
    )
    return [
        f"labels      {len(label_errors)} in doubt, the most doubtful first",
        *shown,
        *_describe_remainder(len(label_errors) - _MAX_GROUPS),
    ]


def _describe_single_class(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say so where one class is all there is."""
    names = {name for of_split in counts.values() for name in of_split}
    return ["one class   a classifier needs at least two"] if len(names) < 2 else []


def _describe_advice(advice: Sequence[Mapping[str, Any]]) -> list[str]:
    words = [_format_option(one["option"], one["value"]) for one in advice]
    width = max(map(len, words), default=0)
    lines = []
    for number, (word, one) in enumerate(zip(words, advice, strict=True)):
        head = f"{'' if number else 'advice':<10}  {word:<{width}}  "
        indent = " " * len(head)
        lines += textwrap.wrap(one["reason"], _WIDTH, initial_indent=head, subsequent_indent=indent)
    return lines


def _format_option(name: str, value: object) -> str:
    """Return an option or a key as it is typed."""
    return f"{name} {value}" if name.startswith("--") else f"{name}={value}"


def _format_count(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def _fit_to_width(name: str, width: int) -> str:
    """Return a name in so many columns of a terminal; some letters take two."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if cell_len(name) <= width:
        return set_cell_size(name, width)
    return set_cell_size(name, width - 1) + "…"
