"""Export of a model to another library, verified against the evaluated model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.runtimes.runtime_models import is_exported_network
from finetune.bundle.shared_card import remove_local_paths
from finetune.commands.ensembles.combined_model import list_members, load_models, to_paths
from finetune.commands.ensembles.exported_ensemble import evaluate_held_out
from finetune.commands.ensembles.soup import cook_soup
from finetune.commands.export.output_folder import choose_output, write_output
from finetune.commands.export.parity_images import (
    NUM_ACCURACY_IMAGES,
    NUM_PARITY_IMAGES,
    ParityImages,
    select_parity_images,
)
from finetune.commands.export.smaller_file import add_calibration_images, write_smaller_file
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.errors import ConfigError, FinetuneError, ModelError
from finetune.exporters.export_formats import (
    DEFAULT_FORMAT,
    ExportFormat,
    ExportOptions,
    check_options,
    get_format,
    resolve_max_drop,
)
from finetune.exporters.parity import (
    EXACT,
    OWN_PREPROCESSING,
    Parity,
    ParityLimits,
    check_parity,
    measure_parity,
    write_parity,
)
from finetune.exporters.quantization.comparison import PrecisionComparison
from finetune.inference.predictor import Predictor
from finetune.types import Reporter, StrPath


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
        soup: How runs were averaged to one network, see ``cook_soup``; None if they were not.
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


def export(
    model: StrPath | Sequence[StrPath],
    output: StrPath | None = None,
    *,
    format: str = DEFAULT_FORMAT,  # noqa: A002 as the option is named
    include_preprocessing: bool = False,
    precision: str = "fp32",
    max_drop: float | None = None,
    opset: int | None = None,
    images: StrPath | None = None,
    weights: str = "equal",
    soup: str | None = None,
    prior: str | None = None,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Export a model to a format of another library, and check its parity on real images.

    Several models become an ensemble, or with ``soup`` one network. The written files are run by
    their own runtime, and the result of the comparison is ``parity.json`` beside them,
    with their SHA-256 in ``file_digests.json``.

    Args:
        model: Run folder, bundle folder or checkpoint, or several of them.
        output: Folder to create; None for ``exports/FORMAT`` in the run folder.
        format: Format, one of ``FORMATS``.
        include_preprocessing: Whether the file takes photos, uint8, and gives probabilities;
            otherwise it takes normalised pixels and gives logits.
        precision: Type of the numbers: "fp32", "fp16" or "int8".
        max_drop: Points of accuracy, or of mean average precision, that a file in fp16 or int8 may
            lose on the images; None for ``DEFAULT_MAX_DROP``.
        opset: Version of the ONNX operators; None for the default.
        images: Images for the parity check; None takes validation images of the run, else test
            or training images.
        weights: Weights of several models: "equal", or "val" for those that minimise the log loss
            on the validation images that all runs share.
        soup: "greedy" or "uniform" averages the weights of runs that started from the same weights
            (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482); None averages probabilities.
        prior: Target class prior: "uniform", "train", "model" or a file; None takes that of the
            model card.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: Invalid arguments, or the exported model differs from the evaluated one;
            nothing is then left of it.
    """
    reporter = reporter or Reporter()
    export_format = get_format(format)
    options = ExportOptions(include_preprocessing, precision, opset)
    check_options(export_format, options)
    max_drop = resolve_max_drop(max_drop, precision)
    paths = to_paths(model)
    images = None if images is None else Path(images)
    output = choose_output(paths, None if output is None else Path(output), format, options)
    if soup is not None and weights != "equal":
        raise ConfigError(
            f"--weights {weights} weights probabilities, and --soup averages networks. Leave out "
            f"one of them."
        )
    bundle = (
        load_models(paths, weights=weights, reporter=reporter)
        if soup is None
        else cook_soup(paths, method=soup, reporter=reporter)
    )
    bundle = remove_local_paths(apply_prior(bundle, prior, reporter))
    _check_is_trained(bundle)
    reason = export_format.load_module().explain_refusal(bundle, options)
    if reason is not None:
        raise ConfigError(reason)
    if len(paths) > 1:
        facts = {**bundle.card.facts, **evaluate_held_out(bundle, paths, reporter)}
        bundle = replace(bundle, card=replace(bundle.card, facts=facts))
    is_smaller = options.precision != "fp32"
    limit = NUM_ACCURACY_IMAGES if is_smaller else NUM_PARITY_IMAGES
    parity_images = select_parity_images(
        paths, images, card=bundle.card, reporter=reporter, limit=limit
    )
    if is_smaller:
        options, parity_images = add_calibration_images(options, parity_images, paths, reporter)
    result = ExportResult(
        output,
        export_format,
        options,
        None,
        {},
        list_members(bundle),
        bundle.card.facts.get("soup") if soup is not None else None,
        parity_images.split,
    )
    if is_smaller:
        return _write_smaller(
            bundle, result, parity_images, max_drop=max_drop, prior=prior, reporter=reporter
        )
    return _write_checked(bundle, result, parity_images, prior=prior, reporter=reporter)


def _write_smaller(
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


def _write_checked(
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


def _check_is_trained(bundle: ModelBundle) -> None:
    """Check that the networks are those of torch, and not exported files.

    Raises:
        ConfigError: One is an exported file.
    """
    for member in bundle.members or (bundle,):
        if is_exported_network(member.network):
            raise ConfigError(
                f"{member.source} is an exported file, which cannot be exported again. Name the "
                f"run or the bundle that it was exported from."
            )
