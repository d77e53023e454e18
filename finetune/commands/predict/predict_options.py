"""Settings of a prediction, and checks of them that need neither torch nor a loaded model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.bundle.ensemble_card import is_ensemble, parse_ensemble
from finetune.bundle.model_card import ModelCard, find_bundle, read_card_json
from finetune.bundle.rejection.rejection_statistics import load_rejection_statistics
from finetune.commands.ensembles.distinct_models import check_distinct_paths
from finetune.commands.ensembles.weighting import check_weighting
from finetune.commands.predict.prediction_row import Column, RowFormat
from finetune.commands.prior_checks import check_prior_applies
from finetune.errors import ConfigError, ModelError
from finetune.evaluation.rejection.reject_options import RejectOptions, check_reject_options
from finetune.inference.label_predictions import check_top_k
from finetune.inference.rejection.rejector import Rejector
from finetune.inference.tta import check_tta, parse_tta
from finetune.types import Tta
from finetune.units import format_scientific


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """Settings of a prediction.

    Attributes:
        top_k: Number of most probable classes of an image.
        keeps_all: Whether rows have the probability of every class.
        device: "cpu", "cuda", "mps" or "auto".
        batch_size: Images per batch.
        tta: Views of each image to average over.
        image_size: Height and width of the input in pixels; None for those of the model.
        weights: Weights of several models, see ``load_models``.
        temperature: Divisor of the logits; None for that of the model card.
        prior: Target class prior; None for that of the model card.
        column: Column of the images in CSVs and Parquet files; None for the usual one.
        reject: Which answers are rejected; None rejects none.
        embeddings: File for the features of the images; None for none.
    """

    top_k: int = 1
    keeps_all: bool = False
    device: str = "auto"
    batch_size: int = 32
    tta: Tta = Tta.NONE
    image_size: int | None = None
    weights: str = "equal"
    temperature: float | None = None
    prior: str | None = None
    column: str | None = None
    reject: RejectOptions | None = None
    embeddings: Path | None = None

    def describe_model(self) -> dict[str, Any]:
        """Return the settings that change predictions, by the names of their options."""
        return {
            "--top-k": self.top_k,
            "--all-probabilities": self.keeps_all,
            "--tta": str(parse_tta(self.tta)),
            "--image-size": self.image_size,
            "--weights": self.weights,
            "--temperature": self.temperature,
            "--prior": self.prior,
            "--column": self.column,
            "--reject": None if self.reject is None else str(self.reject),
        }


def check_options(options: PredictOptions, *, num_models: int) -> None:
    """Check what no model allows.

    Args:
        options: Settings.
        num_models: Number of models whose probabilities are averaged.

    Raises:
        ConfigError: A value is out of its range, or two of them contradict each other.
        ModelError: Answers of several models are to be rejected.
    """
    check_weighting(options.weights, num_models=num_models)
    temperature = options.temperature
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(
            f"--temperature {format_scientific(temperature, digits=6)} is not a number above 0. "
            f"1 leaves the logits."
        )
    if options.reject is None:
        return
    check_reject_options(
        options.reject,
        tta=parse_tta(options.tta),
        image_size=options.image_size,
        others={"--temperature": temperature, "--prior": options.prior},
    )
    if num_models > 1:
        raise ModelError(
            f"--reject {options.reject} needs the features of one network, and this is the mean "
            f"of {num_models} models. Name one of them."
        )


def check_card_options(options: PredictOptions, card: ModelCard, *, source: Path) -> None:
    """Check what the card of a model, or of one of several, does not allow.

    Args:
        options: Settings.
        card: Card of the model.
        source: Path of the model, for messages.

    Raises:
        ConfigError: A setting cannot apply to the model.
    """
    check_top_k(options.top_k, card)
    if options.temperature is not None and card.is_multi_label:
        raise ConfigError(
            f"--temperature {format_scientific(options.temperature, digits=6)} cannot apply to a "
            f"multi-label model: the thresholds of its labels were chosen with its own "
            f"temperature. Leave it out."
        )
    if options.prior is not None:
        check_prior_applies(options.prior, card, source=source)
    check_tta(card, parse_tta(options.tta))


def build_row_format(
    options: PredictOptions, card: ModelCard, *, extra: Sequence[Column] = ()
) -> RowFormat:
    """Return the form of the rows of a model.

    Args:
        options: Settings.
        card: Card of the model.
        extra: Columns besides those of the labels and probabilities.
    """
    return RowFormat(
        card.classes,
        top_k=1 if card.is_multi_label else min(options.top_k, len(card.classes)),
        is_multi_label=card.is_multi_label,
        keeps_all=options.keeps_all or card.is_multi_label,
        extra=tuple(extra),
    )


def check_stored_models(options: PredictOptions, models: Sequence[Path]) -> None:
    """Check settings by the files of models, as far as these are read without torch.

    Checkpoints, exported files and models of other programs are not read.

    Args:
        options: Settings, for Parquet parts of predictions.
        models: Models.

    Raises:
        ConfigError: A setting cannot apply to a model, two columns have one name, or a model is
            given twice.
        ModelError: Answers of several models are to be rejected.
        RunFolderError: A model is damaged, or has no statistics for ``--reject``.
    """
    check_options(options, num_models=len(models))
    check_distinct_paths(models)
    for path in models:
        for source, card in _iter_stored_cards(path):
            check_card_options(options, card, source=source)
            if options.reject is not None:
                Rejector(load_rejection_statistics(path), options.reject, card)
            build_row_format(options, card).list_columns(can_be_lines=False)


def _iter_stored_cards(path: Path) -> Iterator[tuple[Path, ModelCard]]:
    """Yield the folder and the card of a bundle, or of each member of an ensemble."""
    folder = find_bundle(path)
    if folder is None:
        return
    try:
        tree = read_card_json(folder)
        members = parse_ensemble(tree)[0] if is_ensemble(tree) else None
        cards = [ModelCard.from_json(tree)] if members is None else []
    except (KeyError, TypeError, ValueError, AttributeError):
        return  # reported where the model is loaded
    yield from ((path, card) for card in cards)
    for member in members or ():
        yield from _iter_stored_cards(folder / member)
