"""Table of a float32 file and its smaller version: bytes, images per second, metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.evaluation.significance import compute_wilson_interval
from finetune.exporters.quantization.accuracy_drop import AccuracyDrop
from finetune.exporters.quantization.graph_inputs import GraphInputs
from finetune.exporters.quantization.quantization_plan import QuantizationRecord
from finetune.exporters.quantization.speed import BATCH_SIZE, describe_processor, measure_speeds


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Facts of a model file.

    Attributes:
        num_bytes: Bytes of the model, with weights in files of their own.
        images_per_second: Median over rounds, by the file's own runtime on this machine.
        metrics: Metrics on the compared images; empty for images without labels.
        accuracy_interval: 95% interval of the accuracy; None without an accuracy.
    """

    num_bytes: int
    images_per_second: float
    metrics: Mapping[str, float]
    accuracy_interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        interval = self.accuracy_interval
        return {
            "bytes": self.num_bytes,
            "images_per_second": self.images_per_second,
            **self.metrics,
            "accuracy_interval": None if interval is None else list(interval),
        }


@dataclass(frozen=True, slots=True)
class PrecisionComparison:
    """Comparison of a smaller file with the float32 file that it was made from.

    Attributes:
        precision: Precision of the smaller file.
        fp32: The float32 file; its metrics are those of the evaluated model.
        smaller: The smaller file.
        drop: What the smaller file loses.
        record: How it was made.
        processor: Processor that timed both files.
        num_threads: Threads that they ran on.
        batch_size: Images of a timed batch.
    """

    precision: str
    fp32: FileFacts
    smaller: FileFacts
    drop: AccuracyDrop
    record: QuantizationRecord
    processor: str
    num_threads: int
    batch_size: int

    @property
    def speedup(self) -> float:
        """Images per second of the smaller file divided by those of the float32 file."""
        return self.smaller.images_per_second / self.fp32.images_per_second

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "precision": self.precision,
            "fp32": self.fp32.to_json(),
            self.precision: self.smaller.to_json(),
            "speedup": self.speedup,
            "drop": self.drop.to_json(),
            "quantization": self.record.to_json(),
            "processor": self.processor,
            "num_threads": self.num_threads,
            "batch_size": self.batch_size,
        }


def compare_files(
    folders: Mapping[str, Path],
    *,
    metrics: Mapping[str, Mapping[str, float]],
    open_network: Callable[[Path], nn.Module],
    inputs: GraphInputs,
    drop: AccuracyDrop,
    record: QuantizationRecord,
) -> PrecisionComparison:
    """Return the comparison of two files, which are timed in turn.

    Args:
        folders: Folder of the float32 file, and then of the smaller one, by precision.
        metrics: Metrics by precision; empty for images without labels.
        open_network: Function that opens the file in a folder.
        inputs: Images for the timing.
        drop: What the smaller file loses.
        record: How it was made.
    """
    batch = torch.from_numpy(inputs.build_batch(BATCH_SIZE))
    networks = {name: open_network(folder) for name, folder in folders.items()}

    def build_run(network: nn.Module) -> Callable[[], object]:
        return lambda: network(batch)

    with torch.inference_mode():
        speeds = measure_speeds(
            {name: build_run(network) for name, network in networks.items()},
            num_images=len(batch),
        )
    fp32, precision = folders
    facts = {
        name: FileFacts(
            sum(file.stat().st_size for file in folder.iterdir() if _is_model_file(file)),
            speeds[name],
            metrics.get(name, {}),
            compute_accuracy_interval(metrics.get(name, {}), drop.num_images),
        )
        for name, folder in folders.items()
    }
    return PrecisionComparison(
        precision,
        facts[fp32],
        facts[precision],
        drop,
        record,
        describe_processor(),
        torch.get_num_threads(),
        len(batch),
    )


def _is_model_file(file: Path) -> bool:
    return file.suffix in (".onnx", ".data", ".xml", ".bin")


def compute_accuracy_interval(
    metrics: Mapping[str, float], num_images: int
) -> tuple[float, float] | None:
    """Return the 95% interval of the accuracy; None where metrics have none."""
    if "accuracy" not in metrics:
        return None
    low, high = compute_wilson_interval(round(metrics["accuracy"] * num_images), num_images)
    return low, high
