"""Model card: everything about a model besides its weights, as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.bundle.label_card import parse_thresholds
from finetune.bundle.renamed_facts import rename_facts
from finetune.bundle.verification.card_values import check_spec, parse_classes
from finetune.bundle.verification.json_file import read_json_file
from finetune.errors import RunFolderError
from finetune.evaluation.priors import ClassPrior, Priors
from finetune.system.given_paths import is_file
from finetune.types import SCORE_LOSSES, PixelRange, PreprocessSpec, ReadOptions

FORMAT_VERSION = 2
"""Version of the cards of multi-label models, which releases that know only version 1 refuse."""

_SINGLE_LABEL_VERSION = 1

CARD_KEY = "finetune"
"""Checkpoint key of the model card, which makes the weights usable without the run's config."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Description of a model in JSON values, stored in every checkpoint and bundle.

    Attributes:
        backbone: timm model name.
        model_args: Arguments of ``timm.create_model`` besides the number of classes.
        classes: Class names in index order.
        spec: Preprocessing of the images.
        facts: Origin of the model: weights, training images per class, seed, metrics …
        temperature: Divisor of the logits before the softmax.
        priors: Class priors of training, of the network and of the adjusted probabilities; None
            for a card written by an older release.
        pixel_range: Range that images of more than 8 bits are read with; None for all bits of each
            file.
        head: Name and settings of a classifier with hidden layers; None for that of the backbone.
        bit_depth: Bits of a channel that images are read with, 8 or 16.
        thresholds: Probability from which each label of a multi-label model is predicted, in class
            order; None for a model of classes that exclude each other.
    """

    backbone: str
    model_args: Mapping[str, Any]
    classes: tuple[str, ...]
    spec: PreprocessSpec
    facts: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    priors: Priors | None = None
    pixel_range: PixelRange | None = None
    head: Mapping[str, Any] | None = None
    bit_depth: int = 8
    thresholds: tuple[float, ...] | None = None

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels, each with a probability of its own."""
        return self.thresholds is not None

    @property
    def head_name(self) -> str | None:
        """Name of a classifier with hidden layers; None for that of the backbone."""
        return None if self.head is None else str(self.head["name"])

    @property
    def score_loss(self) -> str | None:
        """Loss of scores that the logits come from, which assume no class prior; None for others.

        A classifier that ``crt`` has fitted again has logits of cross-entropy.
        """
        loss = self.facts.get("loss")
        return loss if loss in SCORE_LOSSES and self.facts.get("imbalance") != "crt" else None

    @property
    def read_options(self) -> ReadOptions:
        """How image files are read for the model."""
        return ReadOptions(
            pixel_range=self.pixel_range,
            num_channels=self.spec.input_size[0],
            bit_depth=self.bit_depth,
        )

    @property
    def train_counts(self) -> tuple[int, ...] | None:
        """Number of training images per class, in class order; None if unknown."""
        return get_train_counts(self.facts, self.classes)

    @property
    def num_train_images(self) -> int | None:
        """Number of training images; None if unknown.

        Images of several labels are counted once, and so are those of none: counts of labels do
        not tell their number.
        """
        if self.is_multi_label:
            data = self.facts.get("data")
            counts = data.get("num_images") if isinstance(data, Mapping) else None
            return None if not counts else counts.get("train")
        return None if self.train_counts is None else sum(self.train_counts)

    @property
    def shift(self) -> ClassPrior | None:
        """Logit adjustment added to calibrated logits, in class order; None without one."""
        return None if self.priors is None else self.priors.shift

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON and ``torch.load(weights_only=True)`` can load."""
        pixel_range = None if self.pixel_range is None else str(self.pixel_range)
        version = FORMAT_VERSION if self.is_multi_label else _SINGLE_LABEL_VERSION
        tree = {"format": version, **asdict(self), "pixel_range": pixel_range}
        plain: dict[str, Any] = json.loads(json.dumps(tree))
        return plain

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "ModelCard":
        """Return the card of a tree written by ``to_json``.

        Raises:
            KeyError: A required key is missing.
            ValueError: The temperature is not positive, or the classes, the preprocessing, the
                priors or the range are invalid.
            RunFolderError: The tree was written by a newer release.
        """
        if tree["format"] > FORMAT_VERSION:
            raise RunFolderError(
                f"written by a newer release of finetune (format {tree['format']}; this release "
                f"reads up to {FORMAT_VERSION}). Upgrade finetune."
            )
        spec = dict(tree["spec"])
        for key in ("input_size", "mean", "std"):
            spec[key] = tuple(spec[key])
        classes = parse_classes(tree["classes"])
        preprocessing = PreprocessSpec(**spec)
        check_spec(preprocessing)
        if not isinstance(tree["backbone"], str):
            raise ValueError(f"backbone {tree['backbone']!r} is no name")
        return ModelCard(
            backbone=tree["backbone"],
            model_args=tree["model_args"],
            classes=classes,
            spec=preprocessing,
            facts=rename_facts(tree["facts"]),
            temperature=_parse_temperature(tree.get("temperature", 1.0)),
            priors=Priors.from_json(tree.get("priors"), len(classes)),
            pixel_range=None
            if tree.get("pixel_range") is None
            else PixelRange.parse(tree["pixel_range"]),
            head=tree.get("head"),
            bit_depth=int(tree.get("bit_depth", 8)),
            thresholds=parse_thresholds(tree.get("thresholds"), len(classes)),
        )


def find_bundle(path: Path) -> Path | None:
    """Return the bundle folder inside a run folder, or the path if it is one; None without one."""
    folders = (path / "bundle", path)
    return next((folder for folder in folders if is_file(folder / "finetune.json")), None)


def read_card_json(folder: Path) -> dict[str, Any]:
    """Return the JSON of a bundle folder.

    Raises:
        RunFolderError: The file is missing or damaged.
    """
    file = folder / "finetune.json"
    try:
        tree: dict[str, Any] = read_json_file(file)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} is missing or damaged: {error}. Export it again.") from error
    return tree


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """Return the class names of the bundle in a folder, without torch; None without a bundle.

    Raises:
        RunFolderError: The bundle is damaged.
    """
    folder = find_bundle(path)
    tree: Any = {} if folder is None else read_card_json(folder)
    classes = tree.get("classes") if isinstance(tree, dict) else None
    return tuple(classes) if isinstance(classes, list) else None


def get_train_counts(facts: Mapping[str, Any], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return the number of training images per class from a card's facts; None if unknown."""
    counts = facts.get("train_images") or {}
    if not set(classes) <= counts.keys():
        return None
    return tuple(int(counts[name]) for name in classes)


def _parse_temperature(value: Any) -> float:
    """Return the temperature of a card as a number.

    Raises:
        ValueError: The value is not a finite positive number.
    """
    temperature = float(value)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {value!r} is not a positive number")
    return temperature
