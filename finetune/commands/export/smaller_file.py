"""Export of a file with smaller numbers: written in float32, checked, made smaller, compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.commands.export.parity_images import (
    NUM_PARITY_IMAGES,
    ParityImages,
    select_calibration_images,
)
from finetune.errors import ConfigError, ModelError
from finetune.exporters.export_formats import ExportFormat, ExportOptions
from finetune.exporters.metadata import describe_smaller, update_metadata
from finetune.exporters.parity import Parity, ParityLimits, check_parity, measure_parity
from finetune.exporters.quantization.accuracy_drop import (
    check_drop,
    describe_resolution,
    measure_drop,
)
from finetune.exporters.quantization.comparison import (
    PrecisionComparison,
    compare_files,
    compute_accuracy_interval,
)
from finetune.exporters.quantization.graph_inputs import NUM_CALIBRATION_IMAGES, GraphInputs
from finetune.inference.predictor import Predictor
from finetune.types import Reporter

_FP32 = "fp32"

_OTHER_IMAGES = "images"
"""Name of the metrics of images that are no split of a run."""

_SLOWER = 0.95
"""Ratio of speeds below which a file is called slower: timings vary by a few percent."""


@dataclass(frozen=True, slots=True)
class SmallerFile:
    """File with smaller numbers that was written.

    Attributes:
        card: Card of what it computes.
        parity: Its difference from the evaluated model.
        comparison: Its comparison with the float32 file.
    """

    card: ModelCard
    parity: Parity
    comparison: PrecisionComparison


def add_calibration_images(
    options: ExportOptions,
    images: ParityImages,
    models: Sequence[Path],
    reporter: Reporter,
) -> tuple[ExportOptions, ParityImages]:
    """Return the options with calibration images, and the images for the comparison.

    Calibration images are training images of the run; where there are none, every second image of
    the comparison, which then does without them.

    Args:
        options: Options of the export.
        images: Images for the comparison.
        models: Paths of the exported models.
        reporter: Receiver of a note where images are divided.

    Raises:
        ConfigError: There are no images to compare on, or too few to calibrate.
        DataError: The manifest of the run is damaged.
    """
    if not images.files:
        raise ConfigError(
            f"--precision {options.precision} needs images to measure what it loses, and those of "
            f"the run are missing or unknown. Give images with --images FOLDER, best with labels."
        )
    files = select_calibration_images(models, limit=NUM_CALIBRATION_IMAGES)
    if files or options.precision != "int8":
        return replace(options, calibration_images=files), images
    if len(images.files) < 2:
        raise ConfigError(
            "--precision int8 needs training images of the run, from which ranges are measured. "
            "They are missing or unknown: give at least two images with --images FOLDER; every "
            "second one takes their place."
        )
    reporter.note(
        "The training images of the run are missing or unknown: ranges are measured on every "
        "second of the other images, which are left out of the comparison."
    )
    targets = None if images.targets is None else images.targets[1::2]
    compared = replace(images, files=images.files[1::2], targets=targets)
    own = images.files[::2][:NUM_CALIBRATION_IMAGES]
    return replace(options, calibration_images=own), compared


def write_smaller_file(
    bundle: ModelBundle,
    folder: Path,
    export_format: ExportFormat,
    options: ExportOptions,
    *,
    images: ParityImages,
    max_drop: float,
    limits: ParityLimits,
    name: str,
    reporter: Reporter,
) -> SmallerFile:
    """Write the int8 or fp16 version of a model to a folder, and compare it with the float32 file.

    The float32 file has to pass the parity check first: the rest is then the loss of precision.

    Args:
        bundle: Evaluated model.
        folder: Existing folder.
        export_format: Format of the file.
        options: Precision, and the images for calibration.
        images: Images for the comparison, at least one.
        max_drop: Points of accuracy, or of mean average precision, that the file may lose.
        limits: Limits of the parity check of the float32 file.
        name: Name of the export for messages.
        reporter: Receiver of progress and notes.

    Raises:
        DataError: An image cannot be read.
        ModelError: The float32 file differs from the evaluated model, or the smaller file loses
            more than ``max_drop``.
        StorageError: The disk is full, read-only or fails.
    """
    writer, smaller = export_format.load_module(), export_format.load_smaller_module()
    precision = options.precision
    expected = Predictor(bundle, device="cpu").predict_proba(images.files)
    with TemporaryDirectory(prefix="finetune-export-") as temporary:
        reference = Path(temporary)
        card = writer.write_model(bundle, reference, replace(options, precision=_FP32), reporter)
        reporter.start("checking parity", 1)
        step = max(1, -(-len(images.files) // NUM_PARITY_IMAGES))
        same = measure_parity(
            writer.predict_files(reference, images.files[::step]),
            expected[::step],
            card=bundle.card,
            limits=limits,
        )
        check_parity(same, name=f"the float32 file of {name}", limits=limits)
        reporter.finish()
        metadata = smaller.read_metadata(reference)
        files = options.calibration_images or images.files
        inputs = GraphInputs(files, metadata, bundle.card.read_options)
        reporter.start(f"converting to {precision}", 1)
        record = smaller.write_smaller(reference, folder, precision, inputs, reporter)
        actual = writer.predict_files(folder, images.files)
        reporter.finish()
        _check_finite(actual, name=name, precision=precision)
        parity = measure_parity(actual, expected, card=bundle.card, targets=images.targets)
        drop = measure_drop(
            actual,
            expected,
            card=bundle.card,
            targets=images.targets,
            max_points=max_drop,
        )
        check_drop(drop, name=name, precision=precision)
        by_precision = _list_metrics(parity, precision)
        card = describe_smaller(
            card,
            precision=precision,
            metrics=by_precision[precision],
            name=images.split or _OTHER_IMAGES,
            num_images=len(images.files),
            accuracy_interval=compute_accuracy_interval(by_precision[precision], len(images.files)),
        )
        smaller.write_metadata(folder, update_metadata(metadata, card))
        reporter.start("timing", 1)
        comparison = compare_files(
            {_FP32: reference, precision: folder},
            metrics=by_precision,
            open_network=smaller.open_network,
            inputs=inputs,
            drop=drop,
            record=record,
        )
        reporter.finish()
    _tell(comparison, reporter)
    return SmallerFile(card, parity, comparison)


def _check_finite(probabilities: Tensor, *, name: str, precision: str) -> None:
    """Check that a file computes numbers.

    Raises:
        ModelError: It does not.
    """
    if not torch.isfinite(probabilities).all():
        raise ModelError(
            f"{name} was not written: in {precision} the model gives no numbers (NaN). Activations "
            f"of the network exceed the range of {precision}. Leave out --precision."
        )


def _list_metrics(parity: Parity, precision: str) -> dict[str, Mapping[str, float]]:
    """Return the metrics of both files by precision; empty for images without labels."""
    metrics = parity.metrics or {}
    return {
        column: {name: values[key] for name, values in metrics.items()}
        for column, key in ((_FP32, "model"), (precision, "export"))
    }


def _tell(comparison: PrecisionComparison, reporter: Reporter) -> None:
    """Warn of a file that is not faster, and a loss that few images cannot show."""
    if comparison.speedup < _SLOWER:
        reporter.warn(
            f"{comparison.precision} is slower than fp32 here, {comparison.speedup:.2f} times the "
            f"images per second ({comparison.processor}): only the file is smaller"
        )
    if (text := describe_resolution(comparison.drop)) is not None:
        reporter.warn(f"{text}")
