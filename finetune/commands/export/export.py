"""Export of a model to another library, verified against the evaluated model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.shared_card import remove_local_paths
from finetune.commands.ensembles.combined_model import list_members, load_models, to_paths
from finetune.commands.ensembles.exported_ensemble import evaluate_held_out
from finetune.commands.ensembles.soup import cook_soup
from finetune.commands.export.output_folder import choose_output
from finetune.commands.export.parity_images import ParityImages, select_parity_images
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.errors import ConfigError
from finetune.exporters.export_formats import (
    DEFAULT_FORMAT,
    ExportFormat,
    ExportOptions,
    check_options,
    get_format,
)
from finetune.exporters.parity import (
    EXACT,
    OWN_PREPROCESSING,
    Parity,
    check_parity,
    measure_parity,
    write_parity,
)
from finetune.inference.predictor import Predictor
from finetune.system.files import write_folder_atomically
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
    """

    output: Path
    export_format: ExportFormat
    options: ExportOptions
    parity: Parity | None
    prior: Mapping[str, Any]
    members: tuple[tuple[str, float], ...] = ()
    soup: Mapping[str, Any] | None = None
    parity_split: str | None = None

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
        """Return the parity as JSON values, with the split of its images; None without any."""
        if self.parity is None:
            return None
        return {**self.parity.to_json(), "split": self.parity_split}


def export(
    model: StrPath | Sequence[StrPath],
    output: StrPath | None = None,
    *,
    format: str = DEFAULT_FORMAT,  # noqa: A002 as the option is named
    include_preprocessing: bool = False,
    precision: str = "fp32",
    opset: int | None = None,
    images: StrPath | None = None,
    weights: str = "equal",
    soup: str | None = None,
    prior: str | None = None,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Export a model to a format of another library, and check its parity on real images.

    Several models become an ensemble, or with ``soup`` one network. The written files are run by
    their own runtime, and the result of the comparison is ``parity.json`` beside them.

    Args:
        model: Run folder, bundle folder or checkpoint, or several of them.
        output: Folder to create; None for ``exports/FORMAT`` in the run folder.
        format: Format: "timm", "onnx" or "torch".
        include_preprocessing: Whether the file takes photos, uint8, and gives probabilities;
            otherwise it takes normalised pixels and gives logits.
        precision: Type of the numbers: "fp32", "fp16" or "int8".
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
    reason = export_format.load_module().explain_refusal(bundle, options)
    if reason is not None:
        raise ConfigError(reason)
    if len(paths) > 1:
        facts = {**bundle.card.facts, **evaluate_held_out(bundle, paths, reporter)}
        bundle = replace(bundle, card=replace(bundle.card, facts=facts))
    parity_images = select_parity_images(paths, images, card=bundle.card)
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
    return _write_checked(bundle, result, parity_images, prior=prior, reporter=reporter)


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
    with write_folder_atomically(result.output) as temporary:
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
    actual = result.export_format.load_module().predict_files(folder, images.files)
    limits = OWN_PREPROCESSING if result.options.includes_preprocessing else EXACT
    parity = measure_parity(
        actual, expected, card=bundle.card, targets=images.targets, limits=limits
    )
    check_parity(parity, name=str(result.output), limits=limits)
    return parity
