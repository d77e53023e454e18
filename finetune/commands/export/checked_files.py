"""Files of an export, which appear if they are the same as the evaluated model, or near enough."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.commands.export.export_result import ExportResult
from finetune.commands.export.output_folder import write_output
from finetune.commands.export.parity_images import ParityImages
from finetune.commands.export.smaller_file import write_smaller_file
from finetune.commands.target_prior import prior_to_json
from finetune.errors import FinetuneError, ModelError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.parity import (
    EXACT,
    OWN_PREPROCESSING,
    Parity,
    ParityLimits,
    check_parity,
    measure_parity,
    write_parity,
)
from finetune.inference.predictor import Predictor
from finetune.types import Reporter


def write_smaller(
    bundle: ModelBundle,
    result: ExportResult,
    images: ParityImages,
    *,
    max_drop: float,
    prior: str | None,
    reporter: Reporter,
) -> ExportResult:
    """Write a model in fp16 or int8; the folder appears if it loses no more than is allowed.

    Raises:
        DataError: An image cannot be read.
        ModelError: The written model loses more.
        StorageError: The disk is full, read-only or fails.
    """
    with write_output(result.output) as temporary:
        written = write_smaller_file(
            bundle,
            temporary,
            result.export_format,
            result.options,
            images=images,
            max_drop=max_drop,
            limits=_get_limits(result.options),
            name=str(result.output),
            reporter=reporter,
        )
        result = replace(
            result,
            parity=written.parity,
            prior=prior_to_json(written.card, requested=prior),
            comparison=written.comparison,
        )
        write_parity(temporary, result.parity_to_json() or {})
    return result


def _get_limits(options: ExportOptions) -> ParityLimits:
    """Return the limits of the parity check of a file in fp32."""
    return OWN_PREPROCESSING if options.includes_preprocessing else EXACT


def write_checked(
    bundle: ModelBundle,
    result: ExportResult,
    images: ParityImages,
    *,
    prior: str | None,
    reporter: Reporter,
) -> ExportResult:
    """Write a model and compare it; the folder appears if it is the same as the evaluated one.

    Raises:
        DataError: An image cannot be read.
        ModelError: The written model differs.
        StorageError: The disk is full, read-only or fails.
    """
    module = result.export_format.load_module()
    with write_output(result.output) as temporary:
        card = module.write_model(bundle, temporary, result.options, reporter)
        result = replace(result, prior=prior_to_json(card, requested=prior))
        if images.files:
            reporter.start("checking parity", 1)
            parity = _compare(bundle, temporary, images, result)
            reporter.finish()
            result = replace(result, parity=parity)
            write_parity(temporary, result.parity_to_json() or {})
    if not images.files:
        reporter.warn(
            "parity was not checked: the images of the run are missing or unknown. Give images "
            "with --images FOLDER"
        )
    return result


def _compare(
    bundle: ModelBundle, folder: Path, images: ParityImages, result: ExportResult
) -> Parity:
    """Return the parity of a written model with the evaluated one.

    Raises:
        ModelError: They differ.
    """
    expected = Predictor(bundle, device="cpu").predict_proba(images.files)
    actual = _predict_files(folder, images, result)
    limits = _get_limits(result.options)
    parity = measure_parity(
        actual, expected, card=bundle.card, targets=images.targets, limits=limits
    )
    check_parity(parity, name=str(result.output), limits=limits)
    return parity


def _predict_files(folder: Path, images: ParityImages, result: ExportResult) -> Tensor:
    """Return the probabilities of written files, run by their own runtime, shape (N, K).

    Raises:
        DataError: An image cannot be read.
        ModelError: The runtime cannot run the files.
    """
    try:
        return result.export_format.load_module().predict_files(folder, images.files)
    except FinetuneError:
        raise
    except Exception as error:  # runtimes raise errors of any type
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"{result.export_format.runtime} cannot run {result.output} on images that are "
            f"prepared as its metadata say: {reason}. Do not use this export; please report it."
        ) from error
