"""Export of a model to another library, verified against the evaluated model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.runtimes.runtime_models import is_exported_network
from finetune.bundle.shared_card import remove_local_paths
from finetune.commands.ensembles.combined_model import list_members, load_models, to_paths
from finetune.commands.ensembles.exported_ensemble import evaluate_held_out
from finetune.commands.ensembles.soup import average_runs
from finetune.commands.export.checked_files import write_checked, write_smaller
from finetune.commands.export.export_result import ExportResult
from finetune.commands.export.output_folder import choose_output
from finetune.commands.export.parity_images import (
    NUM_ACCURACY_IMAGES,
    NUM_PARITY_IMAGES,
    select_parity_images,
)
from finetune.commands.export.smaller_file import add_calibration_images
from finetune.commands.target_prior import apply_prior
from finetune.errors import ConfigError
from finetune.exporters.export_formats import (
    DEFAULT_FORMAT,
    ExportOptions,
    check_options,
    get_format,
    resolve_max_drop,
)
from finetune.types import Reporter, StrPath


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
        else average_runs(paths, method=soup, reporter=reporter)
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
        return write_smaller(
            bundle, result, parity_images, max_drop=max_drop, prior=prior, reporter=reporter
        )
    return write_checked(bundle, result, parity_images, prior=prior, reporter=reporter)


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
