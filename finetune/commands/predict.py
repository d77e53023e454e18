"""Name the class of each image in a folder."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import load_model
from finetune.commands.prepare_data import summarise_rejected
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.data.images.validate import check_files
from finetune.data.scan import list_images
from finetune.errors import DataError, RunFolderError
from finetune.inference.predictor import Predictor, check_tta
from finetune.system.files import write_text
from finetune.system.hardware import resolve_accelerator
from finetune.types import Prediction, RejectedFile, Reporter


@dataclass(frozen=True, slots=True)
class PredictResult:
    """Predictions, and the files that got none.

    Attributes:
        predictions: One for each readable image.
        rejected: Files that were left out, with reasons.
        output: The CSV that was written, if any.
        tta: Whether each image was also seen in a mirror.
        prior: Which shares of the classes the answers are for, as plain values.
    """

    predictions: tuple[Prediction, ...]
    rejected: tuple[RejectedFile, ...]
    output: Path | None = None
    tta: bool = False
    prior: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "num_images": len(self.predictions),
            "output": None if self.output is None else str(self.output),
            "tta": self.tta,
            "prior": dict(self.prior),
            "predictions": [
                {
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
        }

    def to_csv(self) -> str:
        """Return a row a file: path,label,probability for each rank, and error at the end."""
        ranks = max((len(p.labels) for p in self.predictions), default=1)
        columns = [
            name + ("" if rank == 1 else f"_{rank}")
            for rank in range(1, ranks + 1)
            for name in ("label", "probability")
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", *columns, "error"])
        for p in self.predictions:
            pairs = zip(p.labels, p.probabilities, strict=True)
            cells = [cell for label, value in pairs for cell in (label, f"{value:.6f}")]
            writer.writerow([p.path, *cells, ""])
        for entry in self.rejected:
            writer.writerow([entry.path, *[""] * len(columns), entry.reason])
        return text.getvalue()


def predict(
    model: Path,
    images: Path,
    *,
    output: Path | None = None,
    top_k: int = 1,
    device: str = "auto",
    batch_size: int = 32,
    tta: bool = False,
    prior: str | None = None,
    reporter: Reporter | None = None,
) -> PredictResult:
    """Return the most probable classes of each image below a folder, or of one file.

    Args:
        model: A run folder, a bundle folder or a checkpoint.
        images: A folder, searched to any depth, or an image.
        output: A CSV to write; whole or not at all.
        top_k: How many classes an image.
        device: "cpu", "cuda", "mps" or "auto".
        batch_size: Images at once.
        tta: Average over each image and its mirror image.
        prior: Class shares that the answers are for: "uniform", "train", "model" or a file; None
            takes those that the model's card names.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    reporter = reporter or Reporter()
    if output is not None and output.is_dir():
        raise RunFolderError(f"--output {output} is a folder; name a .csv file.")
    accelerator = resolve_accelerator(device, setting="--device")
    bundle = apply_prior(load_model(model), prior, reporter)
    if tta:
        check_tta(bundle.card)
    files, rejected = list_images(images)
    good, bad = _filter_readable(files, reporter)
    rejected = [*rejected, *bad]
    if rejected:
        reporter.warn(f"{len(rejected)} files without prediction: {summarise_rejected(rejected)}")
    if not good:
        raise DataError(f"No image in {images} can be read: {summarise_rejected(rejected)}.")
    predictor = Predictor(bundle, device=accelerator, batch_size=batch_size, tta=tta)
    reporter.start("predicting", len(good))
    found = tuple(predictor.predict(good, top_k=top_k, on_batch=reporter.advance))
    reporter.finish()
    said = prior_to_json(bundle.card, requested=prior)
    result = PredictResult(found, tuple(rejected), output, tta, said)
    if output is not None:
        write_text(output, result.to_csv())
    return result


def _filter_readable(
    files: Sequence[Path], reporter: Reporter
) -> tuple[list[Path], list[RejectedFile]]:
    good: list[Path] = []
    bad: list[RejectedFile] = []
    reporter.start("checking images", len(files))
    for file, reason in zip(files, check_files(files), strict=True):
        if reason is None:
            good.append(file)
        else:
            bad.append(RejectedFile(file.as_posix(), reason))
        reporter.advance()
    reporter.finish()
    return good, bad
