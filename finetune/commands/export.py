"""Ship a model as a folder, compared with the model that was measured."""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune import run_folder
from finetune.bundle import ModelBundle, load_model, save_bundle
from finetune.commands.read_run import stored_config, stored_manifest
from finetune.data.scan import list_images
from finetune.errors import RunFolderError
from finetune.exporters.parity import Parity, compare_timm_folder
from finetune.inference.predictor import Predictor
from finetune.models.head import with_temperature
from finetune.types import Reporter, Split

_NUM_CHECKED = 64


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An exported folder and how it compares.

    Attributes:
        output: The folder.
        parity: The comparison; None where there were no images.
    """

    output: Path
    parity: Parity | None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "output": str(self.output),
            "format": "timm",
            "files": sorted(file.name for file in self.output.iterdir()),
            "parity": None if self.parity is None else asdict(self.parity),
        }


def export(
    model: Path, output: Path, *, images: Path | None = None, reporter: Reporter | None = None
) -> ExportResult:
    """Write a model as a folder that finetune and timm read, and prove that it is the same.

    Args:
        model: A run folder, a bundle folder or a checkpoint.
        output: The folder to make.
        images: Images to compare on; None takes those that the run held out.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend; the folder is then not left behind.
    """
    reporter = reporter or Reporter()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(f"{output} exists and is not empty. Choose another --output.")
    bundle = load_model(model)
    checked_on = _images_to_compare(model, images)
    shipped = _with_temperature_in_head(bundle)
    save_bundle(shipped.network, shipped.card, output)
    if shipped.card.temperature != 1:
        reporter.warn(
            f"the network has no linear classifier to hold its temperature: whoever uses timm "
            f"alone divides the logits by {shipped.card.temperature:.4g}, as README.md says"
        )
    if not checked_on:
        reporter.warn(
            "no images to compare the export with: the run's own are gone or unknown. Name some "
            "with --images FOLDER"
        )
        return ExportResult(output, None)
    reporter.start("comparing", 1)
    try:
        parity = compare_timm_folder(
            output,
            checked_on,
            ours=Predictor(bundle, device="cpu").probabilities(checked_on),
            classes=bundle.card.classes,
            temperature=shipped.card.temperature,
        )
    except BaseException:
        shutil.rmtree(output)
        raise
    reporter.finish()
    return ExportResult(output, parity)


def _with_temperature_in_head(bundle: ModelBundle) -> ModelBundle:
    """Return a model whose logits need no temperature, where its head can hold it."""
    if bundle.card.temperature == 1:
        return bundle
    network = with_temperature(bundle.network, bundle.card.temperature)
    if network is None:
        return bundle
    facts = {**bundle.card.facts, "temperature_in_head": bundle.card.temperature}
    return replace(bundle, network=network, card=replace(bundle.card, facts=facts, temperature=1.0))


def _images_to_compare(model: Path, images: Path | None) -> list[Path]:
    if images is not None:
        return list_images(images)[0][:_NUM_CHECKED]
    if not (model / "manifest.csv").is_file():
        return []
    run = run_folder.existing(model)
    manifest = stored_manifest(run, stored_config(run))
    held_out = manifest.paths(manifest.of(Split.VAL))
    step = max(1, len(held_out) // _NUM_CHECKED)
    return [file for file in held_out[::step] if file.is_file()][:_NUM_CHECKED]
