"""What a model is besides its weights, in JSON for programs and in words for people."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import RunFolderError
from finetune.evaluation.priors import ClassPrior, Priors, describe_class_prior, is_same_prior
from finetune.types import PreprocessSpec

FORMAT_VERSION = 1

CARD_KEY = "finetune"
"""Key of the model card in a checkpoint: the weights can be used without the run's config."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is, in JSON values; stands in every checkpoint and bundle.

    Attributes:
        backbone: timm name.
        model_args: Arguments of ``timm.create_model`` besides the number of classes.
        classes: Class names in index order.
        spec: Preprocessing.
        facts: Where it came from: weights, training images of each class, seed, metrics …
        temperature: What logits are divided by before they become probabilities.
        priors: Class shares that they hold for, and are then moved to; None where an older release
            wrote the card.
    """

    backbone: str
    model_args: Mapping[str, Any]
    classes: tuple[str, ...]
    spec: PreprocessSpec
    facts: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    priors: Priors | None = None

    @property
    def train_counts(self) -> tuple[int, ...] | None:
        """Training images of each class, in class order; None where that is not known."""
        return get_train_counts(self.facts, self.classes)

    @property
    def shift(self) -> ClassPrior | None:
        """What is added to calibrated logits, in class order; None where nothing is."""
        return None if self.priors is None else self.priors.shift

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON and ``torch.load(weights_only=True)`` read back."""
        tree = {"format": FORMAT_VERSION, **asdict(self)}
        plain: dict[str, Any] = json.loads(json.dumps(tree))
        return plain

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "ModelCard":
        """Return the card of what ``to_json`` gave.

        Raises:
            KeyError: Something is missing.
            ValueError: The temperature is no positive number, or the priors are no shares.
            RunFolderError: A newer release wrote it.
        """
        if tree["format"] > FORMAT_VERSION:
            raise RunFolderError(
                f"a newer finetune wrote it (format {tree['format']}, this one reads up to "
                f"{FORMAT_VERSION}). Upgrade finetune."
            )
        spec = dict(tree["spec"])
        for key in ("input_size", "mean", "std"):
            spec[key] = tuple(spec[key])
        classes = tuple(tree["classes"])
        return ModelCard(
            backbone=tree["backbone"],
            model_args=tree["model_args"],
            classes=classes,
            spec=PreprocessSpec(**spec),
            facts=tree["facts"],
            temperature=_parse_temperature(tree.get("temperature", 1.0)),
            priors=Priors.from_json(tree.get("priors"), len(classes)),
        )


def find_bundle(path: Path) -> Path | None:
    """Return the bundle folder that a run folder holds, or that a path is; None without one."""
    return next((at for at in (path / "bundle", path) if (at / "finetune.json").is_file()), None)


def read_card_json(folder: Path) -> dict[str, Any]:
    """Return the JSON of a bundle folder.

    Raises:
        RunFolderError: It is missing or damaged.
    """
    file = folder / "finetune.json"
    try:
        tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} is missing or damaged: {error}. Export it again.") from error
    return tree


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """Return the classes of the model in a folder; None where no bundle tells without torch.

    Raises:
        RunFolderError: The bundle is damaged.
    """
    folder = find_bundle(path)
    tree: Any = {} if folder is None else read_card_json(folder)
    classes = tree.get("classes") if isinstance(tree, dict) else None
    return tuple(classes) if isinstance(classes, list) else None


def get_train_counts(facts: Mapping[str, Any], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return the training images of each class by a card's facts; None where they do not say."""
    known = facts.get("train_images") or {}
    if not set(classes) <= known.keys():
        return None
    return tuple(int(known[name]) for name in classes)


def render_readme(card: ModelCard) -> str:
    """Return what a model is and how to use it, in Markdown."""
    metrics = card.facts.get("metrics", {})
    rows = "".join(
        f"| {split} | {name} | {'undefined' if value is None else f'{value:.4f}'} |\n"
        for split, values in metrics.items()
        for name, value in values.items()
    )
    own = card.backbone.partition(".")[0] in ("googlenet", "alexnet")
    register = f"import finetune  # makes timm know {card.backbone}\n" if own else ""
    scale = "" if card.temperature == 1 else f" / {card.temperature!r}"
    shift = "" if card.shift is None else " + shift"
    return f"""# {card.backbone} for {len(card.classes)} classes

Classes, in index order: {", ".join(card.classes)}.

| split | metric | value |
|---|---|---|
{rows}
{_render_temperature(card)}{_render_priors(card)}Use it with `finetune predict THIS_FOLDER images/`, or
with timm alone:

```python
{register}import timm

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
classes = model.pretrained_cfg["label_names"]
# probabilities: (model(transform(image)[None]){scale}{shift}).softmax(1)
```
"""


def _render_temperature(card: ModelCard) -> str:
    """Say where the temperature is, if there is one."""
    if card.temperature != 1:
        return (
            f"Its probabilities are calibrated: logits are divided by {card.temperature!r}, which "
            f"finetune does and timm does not. `finetune export` makes a folder whose classifier "
            f"does.\n\n"
        )
    if (held := card.facts.get("temperature_in_head", 1)) != 1:
        return (
            f"Its probabilities are calibrated: the classifier holds the temperature {held!r}.\n\n"
        )
    return ""


def _render_priors(card: ModelCard) -> str:
    """Say which shares of the classes the probabilities are for, if that is known."""
    priors = card.priors
    if priors is None:
        return ""
    held_for = describe_class_prior(priors.effective, priors.train)
    measured = _get_evaluation_prior(card)
    if measured is not None and not is_same_prior(measured, priors.effective):
        before = describe_class_prior(measured, priors.train)
        held_for += f" (the numbers above are of answers for {before}: measure it again)"
    if priors.target is not None:
        return (
            f"Its probabilities are for {held_for}, where the network's are for "
            f"{describe_class_prior(priors.model, priors.train)}: finetune adds log(target / model) of the "
            f"`priors` in finetune.json to the logits of each class, the `shift` below, and timm "
            f"does not. `finetune export` makes a folder whose classifier does.\n\n"
        )
    if "prior_in_head" in card.facts:
        return (
            f"Its probabilities are for {held_for}: the classifier was moved there from the shares "
            f"that it was trained with, and nothing is left to adjust.\n\n"
        )
    return f"Its probabilities are for {held_for}.\n\n"


def _get_evaluation_prior(card: ModelCard) -> ClassPrior | None:
    """Return the shares for which the model answered when it was measured; None if not known."""
    for evaluation in card.facts.get("evaluations", {}).values():
        shares = evaluation["prior"]["shares"]
        return None if shares is None else tuple(shares[name] for name in card.classes)
    return None


def _parse_temperature(value: Any) -> float:
    """Return what a card says, which is nothing if it was written before there were temperatures.

    Raises:
        ValueError: It is no number that could divide logits.
    """
    temperature = float(value)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {value!r} is no positive number")
    return temperature
