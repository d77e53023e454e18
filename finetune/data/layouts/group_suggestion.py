"""Pattern of groups that the names of images suggest, such as frames of one video.

A suggestion is made only where it is plain: nearly all names have a number in front of a counter or
of coordinates, and images that share that number are several, and of one class. Names of cameras
(IMG_0001, DSC1_0001), of classes with a counter, of classes by number (n01440764_10026,
001.Albatross_0001_796111), of kinds (type1_001), of splits and of days suggest nothing. A few
numbers in each class may be kinds, too, unless their word is one for an object, such as a patient.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from finetune.types import Sample, Split
from finetune.units import format_count

_COUNTER = r"[-_][A-Za-z]*\d+"
_PATTERNS = (
    rf"([^/]+?)(?:{_COUNTER}){{2}}\.\w+$",  # patient07_2_003.jpg
    r"([^/]+?)(?:[-_](?:row|col|[xyzrc])[-_=]?\d+)+\.\w+$",  # S17-04_x1024_y2048.png
    rf"([^/]+){_COUNTER}\.\w+$",  # vid12_frame003.jpg
    r"([^/]*\d)[A-Za-z]+\d+\.\w+$",  # vid12frame003.jpg
    r"([^/]+)/[^/]+$",  # cat/clip3/0001.jpg
)
_COPIES = r"([^/]+)\.rf\.\w+\.\w+$"
"""Augmented copies of one photo, as a web service writes them."""

_WITH_CLASS = r"^([^/]+/[^/]+)[-_][A-Za-z]*(\d+)\.\w+$"
_WITH_CLASS_SETTING = rf"^([^/]+/[^/]+){_COUNTER}\.\w+$"

_CLASS_NUMBER = re.compile(r"n\d{8}|\d+\.[A-Za-z]")
_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", "(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_DATE = re.compile(
    "|".join(
        rf"(?<!\d){mark.join(parts)}(?!\d)"
        for year, mark in ((_YEAR, "[-_.]?"), (r"\d\d", ""))
        for parts in ((year, _MONTH, _DAY), (_DAY, _MONTH, year), (_MONTH, _DAY, year))
    )
)
_CAMERA = re.compile(
    r"(?:DSC[A-Z]?|IMG[A-Z]?|PICT|MVI|GOPR|G[HX]|DJI|CIMG|HPIM|PXL|SAM|KIMG)[-_]?\d?", re.IGNORECASE
)
_KIND = re.compile(
    r"(?:^|[^a-z])(?:type|kind|class|cls|category|cat|label|breed|species|variety|style|grade|"
    r"level|stage|train|training|val|valid|validation|test|split|fold|set|part|batch)"
    r"(?=[-_ ]?\d)",
    re.IGNORECASE,
)
_OBJECT = re.compile(
    r"(?:^|[^a-z])(?:video|vid|v|clip|sequence|seq|scene|shot|track|patient|pat|pt|p|case|subject|"
    r"subj|sub|s|person|slide|wsi|scan|session|series|recording|rec|camera|cam|plot|plant|tree|"
    r"animal|specimen|sample|object|obj|id)(?=[-_ ]?\d)",
    re.IGNORECASE,
)
_MIN_GROUPS_PER_CLASS = 6
"""Smallest number of groups in the class of an image, for names that may be those of kinds."""

_MIN_IMAGES = 3
_MIN_GROUPS = 4
_MIN_FRACTION = 0.9
_MAX_PROBES = 2_000


@dataclass(frozen=True, slots=True)
class GroupSuggestion:
    """Pattern that finds groups in the names of images.

    Attributes:
        pattern: Value for ``data.group_by``.
        num_groups: Number of groups.
        num_images: Number of images in them.
        example: Name of an image.
    """

    pattern: str
    num_groups: int
    num_images: int
    example: str

    def describe(self) -> str:
        """Return the suggestion as a line."""
        mean = round(self.num_images / self.num_groups)
        return (
            f"File names look like groups (such as {self.example}: "
            f"{format_count(self.num_groups, 'group')} of about {format_count(mean, 'image')}); "
            f"data.group_by='{self.pattern}' keeps each on one side of the split."
        )


def suggest_groups(
    samples: Sequence[Sample], names: Mapping[str, str] | None = None
) -> GroupSuggestion | None:
    """Return the pattern of the largest groups that the names plainly have; None for no such.

    Args:
        samples: Images; those with groups, or of several labels, suggest nothing.
        names: Path of a sample to the name that is searched instead of it, where they differ.
    """
    if any(sample.group or sample.labels is not None for sample in samples):
        return None
    searched = [(names or {}).get(sample.path, sample.path) for sample in samples]
    labels = [sample.label for sample in samples]
    found = []
    for pattern in (*_PATTERNS, _COPIES):
        groups = _find_groups(pattern, searched)
        if groups is None:
            continue
        if pattern != _COPIES and (not _are_numbered(groups) or _may_be_kinds(groups, labels)):
            continue
        if _divide_classes(groups, labels):
            found.append((pattern, groups))
    sequences = None if found else _find_sequences(searched)
    is_plain = sequences is not None and not _may_be_kinds(sequences, labels)
    if sequences is not None and is_plain and _divide_classes(sequences, labels):
        found.append((_WITH_CLASS_SETTING, sequences))
    if not found:
        return None
    pattern, groups = min(found, key=lambda item: len(set(item[1])))
    if not _are_on_both_sides(samples, groups):
        return None
    example = next(name for name, group in zip(searched, groups, strict=True) if group)
    return GroupSuggestion(
        pattern, len(set(groups) - {""}), sum(map(bool, groups)), example.rpartition("/")[2]
    )


def _find_groups(pattern: str, names: Sequence[str]) -> list[str] | None:
    """Return the group of each name, "" for none; None if too few have one."""
    expression = re.compile(pattern)
    probes = names[:: max(1, len(names) // _MAX_PROBES)]
    if sum(expression.search(name) is not None for name in probes) < _MIN_FRACTION * len(probes):
        return None
    matches = map(expression.search, names)
    return [match[1] if match else "" for match in matches]


def _are_numbered(groups: Sequence[str]) -> bool:
    """Return whether most groups have a number that is no day, class, kind, split or camera."""
    distinct = set(groups) - {""}
    numbered = [
        group
        for group in distinct
        if re.search(r"\d", group)
        and not (_DATE.search(group) or _CLASS_NUMBER.match(group))
        and not (_CAMERA.fullmatch(group) or _KIND.search(group))
    ]
    return len(numbered) >= _MIN_FRACTION * len(distinct)


def _may_be_kinds(groups: Sequence[str], labels: Sequence[str]) -> bool:
    """Return whether classes have few groups, with names that are no words for objects."""
    distinct = set(groups) - {""}
    named = [group for group in distinct if _OBJECT.search(group.rpartition("/")[2])]
    if len(named) >= _MIN_FRACTION * len(distinct):
        return False
    pairs = {pair for pair in zip(groups, labels, strict=True) if pair[0]}
    num_groups = Counter(label for _, label in pairs)
    return median(num_groups[label] for label in labels) < _MIN_GROUPS_PER_CLASS


def _divide_classes(groups: Sequence[str], labels: Sequence[str]) -> bool:
    """Return whether groups are of several images and one class, and classes of several groups."""
    sizes = Counter(groups)
    sizes.pop("", None)
    covered = sum(size for size in sizes.values() if size >= _MIN_IMAGES)
    if len(sizes) < _MIN_GROUPS or covered < _MIN_FRACTION * len(groups):
        return False
    pairs = {pair for pair in zip(groups, labels, strict=True) if pair[0]}
    groups_of_class = Counter(label for _, label in pairs)
    num_divided = sum(groups_of_class[label] > 1 for label in labels)
    return len(pairs) == len(sizes) and 2 * num_divided >= len(labels)


def _find_sequences(names: Sequence[str]) -> list[str] | None:
    """Return groups whose counters begin anew in each, with the folder; None for no such.

    Numbers that are used again in another class are those of other objects if each has images with
    the counters 0, 1, 2 and so on, as the tracks of traffic signs.
    """
    groups = _find_groups(_WITH_CLASS, names)
    if groups is None or not _are_numbered([group.rpartition("/")[2] for group in groups]):
        return None
    counters: dict[str, set[int]] = {}
    for group, counter in _iter_counters(names):
        counters.setdefault(group, set()).add(counter)
    complete = [c for c in counters.values() if min(c) <= 1 and max(c) - min(c) < len(c) + 1]
    return groups if len(complete) >= _MIN_FRACTION * len(counters) else None


def _iter_counters(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    for match in map(re.compile(_WITH_CLASS).search, names):
        if match:
            yield match[1], int(match[2])


def _are_on_both_sides(samples: Sequence[Sample], groups: Sequence[str]) -> bool:
    """Return whether a split is yet to be drawn, or given splits divide a group."""
    if not any(sample.split is Split.VAL for sample in samples):
        return True
    pairs = {(group, s.split) for s, group in zip(samples, groups, strict=True) if group}
    return len(pairs) > len({group for group, _ in pairs})
