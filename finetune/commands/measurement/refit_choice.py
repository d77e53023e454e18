"""Choice of the weights that ship, also for a network that trains on all images after its folds.

Such a network has no validation images: its epochs, its weights on the line from the linear probe
to the last epoch, its temperature and its thresholds are those of the folds.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from finetune.builders import Training
from finetune.bundle.bundle import load_model
from finetune.bundle.checkpoint_file import NETWORK_PREFIX, save_checkpoint_file
from finetune.bundle.label_card import mark_fold_thresholds
from finetune.bundle.model_card import CARD_KEY
from finetune.commands.measurement.interpolation import (
    describe_interpolation,
    interpolate_best_model,
    interpolate_weights,
)
from finetune.errors import RunFolderError
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from finetune.units import is_number

_FILE = "refit.json"


@dataclass(frozen=True, slots=True)
class RefitChoice:
    """Choices of the folds for a network without validation images.

    Attributes:
        num_epochs: Epochs to train, of the schedule of all epochs; 0 keeps the linear probe.
        position: Weights on the line from the linear probe at 0 to the last epoch at 1; None for
            those of the last epoch as they are.
        temperature: Divisor of the logits.
        thresholds: Probability from which each label of multi-label images is predicted, shape
            (K,); None for one class of each image.
    """

    num_epochs: int
    position: float | None
    temperature: float
    thresholds: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without thresholds where there are none."""
        tree = asdict(self)
        thresholds = tree.pop("thresholds")
        return tree if thresholds is None else {**tree, "thresholds": list(thresholds)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Return the choice in JSON values.

        Raises:
            TypeError: A value is missing or of another kind, or ``tree`` is no mapping.
        """
        if not isinstance(tree, Mapping):
            raise TypeError(f"it has {json.dumps(tree)} instead of a mapping")
        thresholds, position = tree.get("thresholds"), tree.get("position")
        numbers = [tree.get("num_epochs"), tree.get("temperature"), *(thresholds or ())]
        if position is not None:
            numbers.append(position)
        if not all(is_number(number) for number in numbers):
            raise TypeError("a value is no number")
        return cls(**{**tree, "thresholds": None if thresholds is None else tuple(thresholds)})


def read_refit_choice(run: RunFolder) -> RefitChoice | None:
    """Return the choice of a run without validation images; None for any other run.

    Raises:
        RunFolderError: ``refit.json`` is damaged.
    """
    path = run.path / _FILE
    if not path.is_file():
        return None
    try:
        return RefitChoice.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{path} is damaged: {error}. Remove the folder {run.path} and resume the "
            f"cross-validation, which trains the network again."
        ) from error


def write_refit_choice(run: RunFolder, choice: RefitChoice) -> None:
    """Write the choice into the folder of a run that has not begun.

    Raises:
        StorageError: The disk is full or not writable.
    """
    write_text(run.path / _FILE, json.dumps(choice.to_json(), indent=2) + "\n")


def keep_chosen_weights(run: RunFolder, choice: RefitChoice) -> None:
    """Write the chosen weights of a trained run as its best model, with their temperature.

    Raises:
        StorageError: The disk is full or fails.
    """
    is_trained = choice.num_epochs > 0 and choice.position != 0
    source = load_model(run.last_checkpoint_path if is_trained else run.best_checkpoint_path)
    weights: Mapping[str, Tensor] = source.network.state_dict()
    if choice.position not in (None, 0, 1):
        start = load_model(run.start_checkpoint_path).network.state_dict()
        weights = interpolate_weights(start, weights, float(choice.position or 0))
    card = replace(source.card, temperature=choice.temperature)
    if choice.thresholds is not None:
        facts = mark_fold_thresholds(card.facts)
        card = replace(card, thresholds=choice.thresholds, facts=facts)
    checkpoint = {
        "state_dict": {f"{NETWORK_PREFIX}{name}": value for name, value in weights.items()},
        CARD_KEY: card.to_json(),
    }
    save_checkpoint_file(checkpoint, run.best_checkpoint_path)


def choose_weights(
    run: RunFolder, training: Training, device: torch.device, reporter: Reporter
) -> None:
    """Choose the weights that ship, by validation images or as the folds have found."""
    choice = read_refit_choice(run)
    if choice is not None:
        keep_chosen_weights(run, choice)
        return
    if training.is_probe_only:
        return
    interpolation = interpolate_best_model(run, training, device=device, reporter=reporter)
    if interpolation is not None:
        reporter.note(describe_interpolation(interpolation))
