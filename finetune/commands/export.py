"""Export of a model as a folder, verified against the evaluated model."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import ModelBundle, save_bundle
from finetune.bundle.ensemble import save_ensemble
from finetune.bundle.ensemble_card import get_member_folder
from finetune.bundle.model_card import ModelCard
from finetune.commands.ensembles.combined_model import list_members, load_models, to_paths
from finetune.commands.ensembles.exported_ensemble import (
    evaluate_held_out,
    is_timm_model,
    predict_members,
)
from finetune.commands.ensembles.soup import cook_soup
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.data.scan import list_images
from finetune.errors import ConfigError, RunFolderError
from finetune.exporters.parity import Parity, check_parity, compare_timm_folder
from finetune.exporters.timm_format import explain_refusal
from finetune.inference.predictor import Predictor
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
        members: Path and weight of each member of an ensemble; empty for one network.
        soup: How runs were averaged to one network, see ``cook_soup``; None if they were not.
    """

    output: Path
    parity: Parity | None
    prior: Mapping[str, Any]
    members: tuple[tuple[str, float], ...] = ()
    soup: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "output": str(self.output),
            "format": "ensemble" if self.members else "timm",
            "files": sorted(file.name for file in self.output.iterdir()),
            "members": [{"model": path, "weight": weight} for path, weight in self.members],
            "soup": None if self.soup is None else dict(self.soup),
            "prior": dict(self.prior),
            "parity": None if self.parity is None else asdict(self.parity),
        }


def export(
    model: StrPath | Sequence[StrPath],
    output: StrPath,
    *,
    images: StrPath | None = None,
    weights: str = "equal",
    soup: str | None = None,
    prior: str | None = None,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Export a model as a folder that finetune and timm can load, and check its parity.

    Several models become an ensemble, whose members timm can load, or with ``soup`` one network.

    Args:
        model: Run folder, bundle folder or checkpoint, or several of them.
        output: Folder to create.
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
        FinetuneError: Invalid arguments, or the exported model differs from the evaluated one; the
            folder is then removed.
    """
    reporter = reporter or Reporter()
    paths, output = to_paths(model), Path(output)
    images = None if images is None else Path(images)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(
            f"{output} exists and is not empty. Choose another folder for --output."
        )
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
    bundle = apply_prior(bundle, prior, reporter)
    if not bundle.members:  # an ensemble is a folder of finetune, whatever its members are
        _check_format(bundle)
    if len(paths) > 1:
        facts = {**bundle.card.facts, **evaluate_held_out(bundle, paths, reporter)}
        bundle = replace(bundle, card=replace(bundle.card, facts=facts))
    parity_images = _select_parity_images(paths, images)
    exported = _save(bundle, output, reporter)
    result = ExportResult(
        output,
        None,
        prior_to_json(exported.card, requested=prior),
        list_members(bundle),
        bundle.card.facts.get("soup") if soup is not None else None,
    )
    if not parity_images:
        reporter.warn(
            "parity was not checked: the images of the run are missing or unknown. Give images "
            "with --images FOLDER"
        )
        return result
    reporter.start("checking parity", 1)
    try:
        parity = _check_parity(output, exported, bundle, parity_images)
    except BaseException:
        shutil.rmtree(output)
        raise
    reporter.finish()
    return replace(result, parity=parity)


def _save(bundle: ModelBundle, output: Path, reporter: Reporter) -> ModelBundle:
    """Write a model with calibration and prior in its head, and return what was written."""
    if bundle.members:
        members = [_fold_adjustment_into_head(member) for member in bundle.members]
        facts = {
            key: value
            for key, value in bundle.card.facts.items()
            if key in ("metrics", "evaluations", "ensemble_weights")
        }
        exported = save_ensemble(members, output, weights=bundle.weights, facts=facts)
    else:
        exported = _fold_adjustment_into_head(bundle)
        members = [exported]
        save_bundle(exported.network, exported.card, output)
    own = [
        get_member_folder(number)
        for number, member in enumerate(members)
        if not is_timm_model(member.card)
    ]
    if own:
        reporter.note(
            f"timm cannot read {', '.join(own)}: it knows neither hidden layers (model.head=mlp) "
            f"nor networks of one's own. finetune predict and finetune evaluate read them all."
        )
    remaining = (
        _describe_remaining_adjustment(member.card)
        for member in members
        if is_timm_model(member.card)
    )
    if adjustment := next((text for text in remaining if text), ""):
        reporter.warn(
            f"the network has no linear classifier into which the calibration and the class prior "
            f"can be folded: with timm alone, {adjustment} (see README.md in the exported folder)"
        )
    return exported


def _check_parity(
    output: Path, exported: ModelBundle, bundle: ModelBundle, images: Sequence[Path]
) -> Parity:
    """Return the parity of an exported model, run by timm, with the evaluated one.

    Raises:
        ModelError: They differ.
    """
    expected = Predictor(bundle, device="cpu").predict_proba(images)
    if exported.members:
        actual = predict_members(output, exported, images)
        return check_parity(actual, expected, name=str(output), thresholds=bundle.card.thresholds)
    return compare_timm_folder(
        output,
        images,
        expected=expected,
        classes=bundle.card.classes,
        temperature=exported.card.temperature,
        logit_shift=exported.card.shift,
        options=bundle.card.read_options,
        thresholds=bundle.card.thresholds,
    )


def _check_format(bundle: ModelBundle) -> None:
    folder = bundle.source if bundle.source.is_dir() else None
    reason = explain_refusal(bundle.card.backbone, bundle.card.head_name, bundle=folder)
    if reason is not None:
        raise ConfigError(reason)


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


def _select_parity_images(models: Sequence[Path], images: Path | None) -> list[Path]:
    """Return given images, or those of a run: validation, else test, else training images.

    A cross-validation and its refitted network have no validation images of their own.
    """
    if images is not None:
        return list_images(images).files[:_NUM_PARITY_IMAGES]
    model = next((path for path in models if (path / "manifest.csv").is_file()), None)
    if model is None:
        return []
    run = run_folder.open_existing(model)
    manifest = read_stored_manifest(run, read_stored_config(run))
    for split in (Split.VAL, Split.TEST, Split.TRAIN):
        paths = manifest.resolve_paths(manifest.get_samples(split))
        step = max(1, len(paths) // _NUM_PARITY_IMAGES)
        if files := [file for file in paths[::step] if file.is_file()]:
            return files[:_NUM_PARITY_IMAGES]
    return []
