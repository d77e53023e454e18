"""Section with a 2-D map of the features of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.report.photos.feature_map import ClassNeighbors
from finetune.report.run_facts import RunFacts
from finetune.report.sections.headline import choose_main_split, name_split

MAX_COLORED_CLASSES = 12
"""Classes up to which a point has the color of its class."""

NUM_LISTED = 12
"""Classes of the table that are shown at once."""

_MAX_PATH_LETTERS = 60
_GRID = 1_000


@dataclass(frozen=True, slots=True)
class FeatureMapSection:
    """Map of images.

    Attributes:
        split: Name of the held-out split.
        num_held_out: Held-out images on it.
        num_training: Training images on it.
        num_wrong: Held-out images whose prediction is wrong.
        num_available: Images that could have been shown.
        has_class_colors: Whether a point has the color of its class, and not of being wrong.
        names: Names of classes or combinations of labels that are on the map, with their index.
        num_neighbors: Nearest images that the table counts.
        listed: First rows of the table, the least separate class first.
        others: Further rows.
        data: Points for the script.
    """

    split: str
    num_held_out: int
    num_training: int
    num_wrong: int
    num_available: int
    has_class_colors: bool
    names: tuple[tuple[int, str], ...]
    num_neighbors: int
    listed: tuple[ClassNeighbors, ...]
    others: tuple[ClassNeighbors, ...]
    data: Mapping[str, Any]


def build_feature_map(facts: RunFacts) -> FeatureMapSection | None:
    """Return the map of a run; None without one."""
    found = None if facts.photos is None else facts.photos.feature_map
    if found is None:
        return None
    has_colors = not facts.is_multi_label and len(found.names) <= MAX_COLORED_CLASSES
    grid = (found.positions * _GRID).round().astype(int)
    names = [(index, str(found.names[index])) for index in sorted(set(found.labels.tolist()))]
    data = {
        "x": grid[:, 0].tolist(),
        "y": grid[:, 1].tolist(),
        "label": found.labels.tolist(),
        "predicted": found.predicted.tolist(),
        "wrong": found.is_wrong.astype(int).tolist(),
        "training": found.is_training.astype(int).tolist(),
        "names": list(found.names),
        "paths": [_shorten(path) for path in found.paths],
        "split": name_split(choose_main_split(facts) or ""),
        "sidePx": found.side_px,
        "columns": found.num_columns,
        "hasClassColors": has_colors,
        "sheet": found.sheet,
    }
    return FeatureMapSection(
        name_split(choose_main_split(facts) or ""),
        int((~found.is_training).sum()),
        int(found.is_training.sum()),
        int(found.is_wrong.sum()),
        found.num_available,
        has_colors,
        tuple(names),
        found.num_neighbors,
        tuple(found.neighbors[:NUM_LISTED]),
        tuple(found.neighbors[NUM_LISTED:]),
        data,
    )


def _shorten(path: str) -> str:
    """Return the end of a long path."""
    return path if len(path) <= _MAX_PATH_LETTERS else f"…{path[-_MAX_PATH_LETTERS + 1 :]}"
