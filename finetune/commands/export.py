"""Ship a model as a folder, compared with the model that was measured."""

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
from finetune.errors import RunFolderError
from finetune.exporters.parity import Parity, compare_timm_folder
from finetune.inference.predictor import Predictor
from finetune.models.head import fold_temperature_and_shift
from finetune.system import run_folder
from finetune.types import Reporter, Split

_NUM_PARITY_IMAGES = 64


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An exported folder and how it compares.

    Attributes:
        output: The folder.
        parity: The comparison; None where there were no images.
        prior: Which shares of the classes its answers are for, as plain values.
    """

    output: Path
    parity: Parity | None
    prior: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "output": str(self.output),
            "format": "timm",
            "files": sorted(file.name for file in self.output.iterdir()),
            "prior": dict(self.prior),
            "parity": None if self.parity is None else asdict(self.parity),
        }


def export(
    model: Path,
    output: Path,
    *,
    images: Path | None = None,
    prior: str | None = None,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write a model as a folder that finetune and timm read, and prove that it is the same.

    Args:
        model: A run folder, a bundle folder or a checkpoint.
        output: The folder to make.
        images: Images to compare on; None takes those that the run held out.
        prior: Class shares that its answers are for: "uniform", "train", "model" or a file; None
            takes those that the model's card names.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend; the folder is then not left behind.
    """
    reporter = reporter or Reporter()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(f"{output} exists and is not empty. Choose another --output.")
    bundle = apply_prior(load_model(model), prior, reporter)
    checked_on = _select_parity_images(model, images)
    shipped = _fold_adjustment_into_head(bundle)
    said = prior_to_json(shipped.card, requested=prior)
    save_bundle(shipped.network, shipped.card, output)
    if left := _describe_remaining_adjustment(shipped.card):
        reporter.warn(
            f"the network has no linear classifier to hold what is done to its logits: whoever "
            f"uses timm alone {left}, as README.md says"
        )
    if not checked_on:
        reporter.warn(
            "no images to compare the export with: the run's own are gone or unknown. Name some "
            "with --images FOLDER"
        )
        return ExportResult(output, None, said)
    reporter.start("comparing", 1)
    try:
        parity = compare_timm_folder(
            output,
            checked_on,
            expected=Predictor(bundle, device="cpu").predict_proba(checked_on),
            classes=bundle.card.classes,
            temperature=shipped.card.temperature,
            logit_shift=shipped.card.shift,
        )
    except BaseException:
        shutil.rmtree(output)
        raise
    reporter.finish()
    return ExportResult(output, parity, said)


def _fold_adjustment_into_head(bundle: ModelBundle) -> ModelBundle:
    """Return a model whose logits are the answers, where its head can hold what is done to them.

    Its card says so, or they would be adjusted twice: the temperature is 1, and the target prior
    is the network's own by then.
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
    held = replace(card, facts=facts, temperature=1.0, priors=priors)
    return replace(bundle, network=network, card=held)


def _describe_remaining_adjustment(card: ModelCard) -> str:
    """Return what is to be done to the logits of a card's network; "" for nothing."""
    divides = "" if card.temperature == 1 else f"divides the logits by {card.temperature:.4g}"
    adds = "" if card.shift is None else "adds the logarithm of the ratio of the priors to them"
    return " and ".join(part for part in (divides, adds) if part)


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
