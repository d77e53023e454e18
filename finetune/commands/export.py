"""Export of a model as a folder, verified against the evaluated model."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.bundle.model_card import ModelCard
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.data.scan import list_images
from finetune.errors import ConfigError, RunFolderError
from finetune.exporters.parity import Parity, compare_timm_folder
from finetune.inference.predictor import Predictor
from finetune.lookup import is_import_path
from finetune.models.head import fold_temperature_and_shift
from finetune.system import run_folder
from finetune.types import Reporter, Split, StrPath

_NUM_PARITY_IMAGES = 64


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Exported folder, and its parity with the evaluated model.

    Attributes:
        output: Exported folder.
        parity: Result of the parity check; None without images to check on.
        prior: JSON description of the target class prior, see ``prior_to_json``.
    """

    output: Path
    parity: Parity | None
    prior: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "output": str(self.output),
            "format": "timm",
            "files": sorted(file.name for file in self.output.iterdir()),
            "prior": dict(self.prior),
            "parity": None if self.parity is None else asdict(self.parity),
        }


def export(
    model: StrPath,
    output: StrPath,
    *,
    images: StrPath | None = None,
    prior: str | None = None,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Export a model as a folder that finetune and timm can load, and check its parity.

    Args:
        model: Run folder, bundle folder or checkpoint.
        output: Folder to create.
        images: Images for the parity check; None takes validation images of the run.
        prior: Target class prior: "uniform", "train", "model" or a file; None takes that of the
            model card.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: Invalid arguments, or the exported model differs from the evaluated one; the
            folder is then removed.
    """
    reporter = reporter or Reporter()
    model, output, images = Path(model), Path(output), None if images is None else Path(images)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(
            f"{output} exists and is not empty. Choose another folder for --output."
        )
    bundle = apply_prior(load_model(model), prior, reporter)
    _check_format(bundle.card)
    parity_images = _select_parity_images(model, images)
    exported = _fold_adjustment_into_head(bundle)
    prior_json = prior_to_json(exported.card, requested=prior)
    save_bundle(exported.network, exported.card, output)
    if adjustment := _describe_remaining_adjustment(exported.card):
        reporter.warn(
            f"the network has no linear classifier into which the calibration and the class prior "
            f"can be folded: with timm alone, {adjustment} (see README.md in the exported folder)"
        )
    if not parity_images:
        reporter.warn(
            "parity was not checked: the validation images of the run are missing or unknown. Give "
            "images with --images FOLDER"
        )
        return ExportResult(output, None, prior_json)
    reporter.start("checking parity", 1)
    try:
        parity = compare_timm_folder(
            output,
            parity_images,
            expected=Predictor(bundle, device="cpu").predict_proba(parity_images),
            classes=bundle.card.classes,
            temperature=exported.card.temperature,
            logit_shift=exported.card.shift,
            options=bundle.card.read_options,
        )
    except BaseException:
        shutil.rmtree(output)
        raise
    reporter.finish()
    return ExportResult(output, parity, prior_json)


def _check_format(card: ModelCard) -> None:
    if is_import_path(card.backbone):
        raise ConfigError(
            f"The timm format cannot apply to '{card.backbone}', which timm does not know. Copy "
            f"the bundle and the module instead: finetune predict and finetune evaluate read the "
            f"bundle wherever Python can import the module."
        )


def _fold_adjustment_into_head(bundle: ModelBundle) -> ModelBundle:
    """Return the model with temperature and prior shift folded into its linear head, if it has one.

    The card is updated so that the logits are not adjusted twice: the temperature becomes 1, and
    the target prior becomes the model prior.
    """
    card = bundle.card
    if card.temperature == 1 and card.shift is None:
        return bundle
    network = fold_temperature_and_shift(
        bundle.network, temperature=card.temperature, shift=card.shift
    )
    if network is None:
        return bundle
    facts, priors = dict(card.facts), card.priors
    if card.temperature != 1:
        facts["temperature_in_head"] = card.temperature
    if priors is not None and priors.target is not None:
        facts["prior_in_head"] = list(priors.target)
        priors = replace(priors, model=priors.target, target=None)
    folded_card = replace(card, facts=facts, temperature=1.0, priors=priors)
    return replace(bundle, network=network, card=folded_card)


def _describe_remaining_adjustment(card: ModelCard) -> str:
    """Return the adjustment of the logits that is not folded into the head; "" for none."""
    scale = "" if card.temperature == 1 else f"divide the logits by {card.temperature:.4g}"
    shift = "" if card.shift is None else "add log(target prior / model prior) to the logits"
    return " and ".join(part for part in (scale, shift) if part)


def _select_parity_images(model: Path, images: Path | None) -> list[Path]:
    if images is not None:
        return list_images(images)[0][:_NUM_PARITY_IMAGES]
    if not (model / "manifest.csv").is_file():
        return []
    run = run_folder.open_existing(model)
    manifest = read_stored_manifest(run, read_stored_config(run))
    held_out = manifest.resolve_paths(manifest.get_samples(Split.VAL))
    step = max(1, len(held_out) // _NUM_PARITY_IMAGES)
    return [file for file in held_out[::step] if file.is_file()][:_NUM_PARITY_IMAGES]
