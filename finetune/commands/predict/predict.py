"""Prediction of the class of each image in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.commands.ensembles.combined_model import list_members, load_models, to_paths
from finetune.commands.rejected_files import RangeCheck, propose_heic, summarise_rejected
from finetune.commands.run_images import read_column_options
from finetune.commands.saliency.overlays import Overlays, check_overlay_folder, write_overlays
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.data.images.validate import check_files
from finetune.data.scan import list_images
from finetune.data.scan_result import ImageList
from finetune.errors import DataError, RunFolderError
from finetune.inference.input_checks import check_views, resize_input
from finetune.inference.label_predictions import (
    check_top_k,
    format_label_predictions,
    label_prediction_to_json,
)
from finetune.inference.predictor import Predictor
from finetune.inference.tta import parse_tta
from finetune.system.files import write_text
from finetune.system.hardware import prepare_accelerator
from finetune.types import Prediction, ReadOptions, RejectedFile, Reporter, StrPath, Tta
from finetune.units import format_count, format_csv


@dataclass(frozen=True, slots=True)
class PredictResult:
    """Predictions, and the files without a prediction.

    Attributes:
        predictions: One entry per readable image.
        rejected: Files that were left out, with reasons.
        output: CSV file that was written; None for none.
        tta: Views of each image whose probabilities were averaged.
        prior: JSON description of the target class prior, see ``prior_to_json``.
        members: Path and weight of each member of an ensemble; empty for one model.
        image_size: Height and width of the input in pixels, if it is not that of the model.
        multi_label_classes: Labels of a multi-label model, in class order; empty for other models.
        saliency: Saliency maps of the images; None if none were requested.
    """

    predictions: tuple[Prediction, ...]
    rejected: tuple[RejectedFile, ...]
    output: Path | None = None
    tta: Tta = Tta.NONE
    prior: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[tuple[str, float], ...] = ()
    image_size: int | None = None
    multi_label_classes: tuple[str, ...] = ()
    saliency: Overlays | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_images": len(self.predictions),
            "output": None if self.output is None else str(self.output),
            "members": [{"model": path, "weight": weight} for path, weight in self.members],
            "tta": self.tta is not Tta.NONE,
            "views": self.tta,
            "image_size": self.image_size,
            "prior": dict(self.prior),
            "predictions": [
                label_prediction_to_json(p, self.multi_label_classes)
                if self.multi_label_classes
                else {
                    "path": p.path,
                    "label": p.labels[0],
                    "probability": p.probabilities[0],
                    "top": [
                        {"label": label, "probability": probability}
                        for label, probability in zip(p.labels, p.probabilities, strict=True)
                    ],
                }
                for p in self.predictions
            ],
            "rejected": [asdict(entry) for entry in self.rejected],
            "saliency": None if self.saliency is None else self.saliency.to_json(),
        }

    def to_csv(self) -> str:
        """Return CSV text, one row per file: path, label and probability per rank, and error.

        Of a multi-label model it has the predicted labels, and the probability of each label.
        """
        if self.multi_label_classes:
            return format_label_predictions(
                self.predictions, self.rejected, self.multi_label_classes
            )
        ranks = max((len(p.labels) for p in self.predictions), default=1)
        columns = [
            name + ("" if rank == 1 else f"_{rank}")
            for rank in range(1, ranks + 1)
            for name in ("label", "probability")
        ]
        rows = []
        for p in self.predictions:
            pairs = zip(p.labels, p.probabilities, strict=True)
            cells = [cell for label, value in pairs for cell in (label, f"{value:.6f}")]
            rows.append([p.path, *cells, ""])
        rows += [[entry.path, *[""] * len(columns), entry.reason] for entry in self.rejected]
        return format_csv(["path", *columns, "error"], rows)


def predict(
    model: StrPath | Sequence[StrPath],
    images: StrPath,
    *,
    output: StrPath | None = None,
    top_k: int = 1,
    device: str = "auto",
    batch_size: int = 32,
    tta: Tta | str | bool = Tta.NONE,
    image_size: int | None = None,
    weights: str = "equal",
    prior: str | None = None,
    saliency: StrPath | None = None,
    reporter: Reporter | None = None,
) -> PredictResult:
    """Predict the most probable classes of each image in a folder, or of one image file.

    Args:
        model: Run folder, bundle folder or checkpoint; the probabilities of several are averaged.
        images: Folder, searched recursively, image file or Parquet files. Images in Parquet files
            are called by file and row, as in ``new.parquet/row00000``.
        output: CSV file to write, atomically; None for none.
        top_k: Number of most probable classes per image.
        device: "cpu", "cuda", "mps" or "auto".
        batch_size: Images per batch.
        tta: Views of each image to average over: "none", "hflip", "crops", "crops10" or "sizes";
            True is "hflip".
        image_size: Height and width of the input in pixels; None for those of the model.
        weights: Weights of several models: "equal", or "val" for those that minimise the log loss
            on the validation images that all runs share.
        prior: Target class prior: "uniform", "train", "model" or a file; None takes that of the
            model card.
        saliency: Folder for a picture of each image with its saliency map, where that is better
            than random maps; None for none.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    reporter = reporter or Reporter()
    paths, images, output = to_paths(model), Path(images), None if output is None else Path(output)
    tta = parse_tta(tta)
    if output is not None and output.is_dir():
        raise RunFolderError(f"--output {output} is a folder. Give the path of a .csv file.")
    if saliency is not None:
        check_overlay_folder(Path(saliency))
    accelerator = prepare_accelerator(device, setting="--device")
    bundle = load_models(
        paths, weights=weights, device=accelerator, batch_size=batch_size, reporter=reporter
    )
    bundle = resize_input(apply_prior(bundle, prior, reporter), image_size)
    check_views(bundle, tta)
    check_top_k(top_k, bundle.card)
    listed = list_images(images, tables=read_column_options(paths))
    readable, unreadable = _filter_readable(listed, bundle.card.read_options, reporter)
    rejected = [*listed.rejected, *unreadable]
    if listed.files == [images] and unreadable:
        raise DataError(f"{images} cannot be read: {unreadable[0].reason}.")
    _warn_of_rejected(rejected, reporter)
    if not readable:
        raise DataError(f"No readable image in {images}: {summarise_rejected(rejected)}.")
    predictor = Predictor(bundle, device=accelerator, batch_size=batch_size, tta=tta)
    reporter.start("predicting", len(readable))
    lost: dict[int, str] = {}
    predictions = tuple(
        replace(p, path=listed.get_name(p.path))
        for p in predictor.predict(
            readable, top_k=top_k, on_batch=reporter.advance, unreadable=lost
        )
    )
    reporter.finish()
    lost_files = [
        RejectedFile(listed.get_name(readable[row].as_posix()), reason)
        for row, reason in lost.items()
    ]
    _warn_of_rejected(lost_files, reporter)
    rejected += lost_files
    overlays = None
    if saliency is not None:
        shown = {listed.get_name(p.as_posix()): p for r, p in enumerate(readable) if r not in lost}
        overlays = write_overlays(
            bundle,
            shown,
            Path(saliency),
            root=images,
            device=predictor.device,
            reporter=reporter,
        )
    prior_json = prior_to_json(bundle.card, requested=prior)
    result = PredictResult(
        predictions,
        tuple(rejected),
        output,
        tta,
        prior_json,
        list_members(bundle, paths),
        image_size,
        multi_label_classes=bundle.card.classes if bundle.card.is_multi_label else (),
        saliency=overlays,
    )
    if output is not None:
        write_text(output, result.to_csv())
    return result


def _warn_of_rejected(rejected: Sequence[RejectedFile], reporter: Reporter) -> None:
    if rejected:
        reporter.warn(
            f"{format_count(len(rejected), 'file')} without prediction: "
            f"{summarise_rejected(rejected)}"
        )
    propose_heic(rejected, reporter)


def _filter_readable(
    listed: ImageList, options: ReadOptions, reporter: Reporter
) -> tuple[list[Path], list[RejectedFile]]:
    readable: list[Path] = []
    values = RangeCheck(options.pixel_range)
    rejected: list[RejectedFile] = []
    reporter.start("checking images", len(listed.files))
    reasons = check_files(listed.files, options=options, on_values=values.add)
    for file, reason in zip(listed.files, reasons, strict=True):
        if reason is None:
            readable.append(file)
        else:
            rejected.append(RejectedFile(listed.get_name(file.as_posix()), reason))
        reporter.advance()
    reporter.finish()
    values.report(reporter)
    return readable, rejected
