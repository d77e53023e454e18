"""Prediction of the classes of images: the Python API."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.commands.ensembles.combined_model import to_paths
from finetune.commands.predict.predict_options import PredictOptions
from finetune.commands.predict.predict_result import PredictResult
from finetune.commands.predict.predicted_files import collect_predictions
from finetune.commands.predict.prediction_job import PredictionJob
from finetune.commands.predict.prediction_row import PredictionRow
from finetune.errors import DataError
from finetune.evaluation.rejection.reject_options import RejectOptions, parse_reject
from finetune.inference.tta import parse_tta
from finetune.types import Reporter, StrPath, Tta


def predict(
    model: StrPath | Sequence[StrPath],
    images: StrPath | Sequence[StrPath],
    *,
    output: StrPath | None = None,
    output_format: str | None = None,
    top_k: int = 1,
    all_probabilities: bool = False,
    device: str = "auto",
    batch_size: int = 32,
    tta: Tta | str | bool = Tta.NONE,
    image_size: int | None = None,
    weights: str = "equal",
    temperature: float | None = None,
    prior: str | None = None,
    column: str | None = None,
    embeddings: StrPath | None = None,
    reject: RejectOptions | str | bool | None = None,
    saliency: StrPath | None = None,
    reporter: Reporter | None = None,
) -> PredictResult:
    """Predict the most probable classes of images; the result holds the predictions of all.

    ``stream_predictions`` yields them one by one instead, for any number of images.

    Args:
        model: Run folder, bundle folder, checkpoint or exported model; the probabilities of
            several are averaged.
        images: Folder, searched recursively, image file, text file that lists paths, CSV, Parquet
            files or tar files, or several of these. Images in Parquet and tar files are called by
            file and row or member, as in ``new.parquet/row00000``.
        output: File to write, atomically; None for none.
        output_format: "csv", "jsonl" or "parquet"; None for that of the suffix of ``output``.
        top_k: Number of most probable classes per image.
        all_probabilities: Whether to keep the probabilities of all classes.
        device: "cpu", "cuda", "mps" or "auto".
        batch_size: Images per batch.
        tta: Views of each image to average over: "none", "hflip", "crops", "crops10" or "sizes";
            True is "hflip".
        image_size: Height and width of the input in pixels; None for those of the model.
        weights: Weights of several models: "equal", or "val" for those that minimise the log loss
            on the validation images that all runs share.
        temperature: Divisor of the logits; None for that of the model card.
        prior: Target class prior: "uniform", "train", "model" or a file; None takes that of the
            model card.
        column: Column of the images in a CSV or Parquet files; None for the usual one.
        embeddings: File for the pooled features of each image before the classifier, ".parquet",
            ".npz" or ".csv"; None for none. With ``tta`` they are the means over the views.
        reject: Which answers are rejected, by thresholds that validation images choose:
            "precision=0.99" those of a low probability, "false_rejections=0.05" images unlike the
            training images, or both with a comma between them; True is the second. None rejects
            none.
        saliency: Folder for a picture of each image with its saliency map, where that is better
            than random maps; None for none.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    options = PredictOptions(
        top_k, all_probabilities, device, batch_size, parse_tta(tta), image_size, weights,
        temperature, prior, column, parse_reject(reject),
        None if embeddings is None else Path(embeddings),
    )  # fmt: skip
    return collect_predictions(
        to_paths(model),
        _to_inputs(images),
        options=options,
        output=None if output is None else Path(output),
        output_format=output_format,
        saliency=None if saliency is None else Path(saliency),
        reporter=reporter or Reporter(),
    )


def stream_predictions(
    model: StrPath | Sequence[StrPath],
    images: StrPath | Sequence[StrPath],
    *,
    top_k: int = 1,
    all_probabilities: bool = False,
    device: str = "auto",
    batch_size: int = 32,
    tta: Tta | str | bool = Tta.NONE,
    image_size: int | None = None,
    weights: str = "equal",
    temperature: float | None = None,
    prior: str | None = None,
    column: str | None = None,
    embeddings: StrPath | None = None,
    reject: RejectOptions | str | bool | None = None,
    reporter: Reporter | None = None,
) -> Iterator[PredictionRow]:
    """Yield the prediction of each image, or the reason why it cannot be read, one by one.

    The memory does not grow with the number of images. The arguments are those of ``predict``.

    Raises:
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    options = PredictOptions(
        top_k, all_probabilities, device, batch_size, parse_tta(tta), image_size, weights,
        temperature, prior, column, parse_reject(reject),
        None if embeddings is None else Path(embeddings),
    )  # fmt: skip
    job = PredictionJob(
        to_paths(model), _to_inputs(images), options=options, reporter=reporter or Reporter()
    )
    for rows in job.iterate():
        yield from rows


def _to_inputs(images: StrPath | Sequence[StrPath]) -> list[Path]:
    """Return the paths of one input or several.

    Raises:
        DataError: There is none.
    """
    if isinstance(images, str) or not isinstance(images, Sequence):
        return [Path(images)]
    if not images:
        raise DataError("No images are given. Give a folder, files, a list or a table of images.")
    return [Path(entry) for entry in images]
