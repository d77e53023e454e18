"""Inputs from which a quantised model measures its ranges, and those that judge the ranges."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.exporters.reference_preprocessing import (
    Array,
    parse_description,
    prepare_pixels,
    read_photo,
)
from finetune.types import ReadOptions

NUM_CALIBRATION_IMAGES = 96
"""Training images that a quantised model needs at most."""

_JUDGE_EVERY = 3


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """Image files as inputs of a graph, read anew at each iteration.

    Attributes:
        files: Image files.
        metadata: Metadata of the graph's file, which describe its preprocessing.
        options: How image files are read.
    """

    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    options: ReadOptions

    @property
    def takes_photos(self) -> bool:
        """Whether an input is a photo, whose size differs from that of others."""
        return parse_description(self.metadata).takes_photos

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Array]:
        """Yield the input of each image: pixels, (1, C, H, W), or a photo, (1, H, W, C)."""
        description = parse_description(self.metadata)
        for file in self.files:
            if description.takes_photos:
                yield read_photo(file, self.options)[None]
            else:
                yield prepare_pixels(file, self.options, description)[None]

    def build_batch(self, limit: int) -> Array:
        """Return the first inputs as one batch: at most ``limit`` images, or one photo."""
        size = 1 if self.takes_photos else limit
        return np.concatenate(list(self.take(self.files[:size])))

    def take(self, files: Sequence[Path]) -> "GraphInputs":
        """Return the inputs of other files."""
        return GraphInputs(tuple(files), self.metadata, self.options)

    def split(self) -> tuple["GraphInputs", "GraphInputs"]:
        """Return two thirds of the files to measure ranges, and every third to judge them."""
        judged = self.files[::_JUDGE_EVERY]
        measured = tuple(file for row, file in enumerate(self.files) if row % _JUDGE_EVERY)
        return self.take(measured or judged), self.take(judged)
