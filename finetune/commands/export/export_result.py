"""Result of an export: the folder, its format, and its parity with the evaluated model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.exporters.export_formats import (
    DEFAULT_FORMAT,
    ExportFormat,
    ExportOptions,
)
from finetune.exporters.parity import Parity
from finetune.exporters.quantization.comparison import PrecisionComparison


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Exported folder, and its parity with the evaluated model.

    Attributes:
        output: Exported folder.
        export_format: Format of its files.
        options: What the files do, and in which numbers.
        parity: Result of the parity check; None without images to check on.
        prior: JSON description of the target class prior, see ``prior_to_json``.
        members: Path and weight of each member of an ensemble; empty for one network.
        soup: How runs were averaged to one network, see ``average_runs``; None if they were not.
        parity_split: Split of the run whose images were compared; None for other images.
        comparison: Comparison of an int8 or fp16 file with that in fp32; None for one in fp32.
    """

    output: Path
    export_format: ExportFormat
    options: ExportOptions
    parity: Parity | None
    prior: Mapping[str, Any]
    members: tuple[tuple[str, float], ...] = ()
    soup: Mapping[str, Any] | None = None
    parity_split: str | None = None
    comparison: PrecisionComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        is_folder = bool(self.members) and self.export_format.name == DEFAULT_FORMAT
        return {
            "output": str(self.output),
            "format": "ensemble" if is_folder else self.export_format.name,
            "runtime": self.export_format.runtime,
            "includes_preprocessing": self.options.includes_preprocessing,
            "precision": self.options.precision,
            "files": sorted(file.name for file in self.output.iterdir()),
            "members": [{"model": path, "weight": weight} for path, weight in self.members],
            "soup": None if self.soup is None else dict(self.soup),
            "prior": dict(self.prior),
            "parity": self.parity_to_json(),
        }

    def parity_to_json(self) -> dict[str, Any] | None:
        """Return the parity as JSON values, with a comparison of precisions; None without any."""
        if self.parity is None:
            return None
        tree = {**self.parity.to_json(), "split": self.parity_split}
        if self.comparison is None:
            return tree
        return {**tree, "comparison": self.comparison.to_json()}
