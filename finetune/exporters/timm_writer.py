"""The timm format: a folder that finetune and timm load, of one network or of an ensemble."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from finetune.bundle.bundle import ModelBundle, load_model, save_bundle
from finetune.bundle.ensemble import save_ensemble
from finetune.bundle.ensemble_card import (
    get_class_order,
    get_member_folder,
    is_ensemble,
    parse_ensemble,
)
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.data.images.decode import open_image
from finetune.data.images.multichannel import Planes, get_whole_image
from finetune.errors import ModelError
from finetune.exporters import timm_format
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.folded_head import fold_adjustment_into_head
from finetune.exporters.plain_photo import open_plain_photo
from finetune.types import ReadOptions, Reporter

ENSEMBLE_FACTS = ("metrics", "evaluations", "ensemble_weights")
"""Facts of an ensemble's card that do not follow from its members."""


def explain_refusal(bundle: ModelBundle, options: ExportOptions) -> str | None:
    """Return why timm cannot load a network, and the remedy; None where it can.

    An ensemble is a folder of finetune, whatever its members are.
    """
    del options
    if bundle.members:
        return None
    folder = bundle.source if bundle.source.is_dir() else None
    return timm_format.explain_refusal(bundle.card.backbone, bundle.card.head_name, bundle=folder)


def write_model(
    bundle: ModelBundle, folder: Path, options: ExportOptions, reporter: Reporter
) -> ModelCard:
    """Write a model with calibration and prior in its head, and return the card of what it is."""
    del options
    if bundle.members:
        members = [fold_adjustment_into_head(member) for member in bundle.members]
        facts = {key: v for key, v in bundle.card.facts.items() if key in ENSEMBLE_FACTS}
        card = save_ensemble(members, folder, weights=bundle.weights, facts=facts).card
    else:
        exported = fold_adjustment_into_head(bundle)
        members, card = [exported], exported.card
        save_bundle(exported.network, exported.card, folder)
    own = [
        get_member_folder(number)
        for number, member in enumerate(members)
        if not _is_timm_model(member.card)
    ]
    if own:
        reporter.note(
            f"timm cannot read {', '.join(own)}: it knows neither hidden layers (model.head=mlp) "
            f"nor networks of one's own. finetune predict and finetune evaluate read them all."
        )
    remaining = (
        _describe_remaining_adjustment(member.card)
        for member in members
        if _is_timm_model(member.card)
    )
    if adjustment := next((text for text in remaining if text), ""):
        reporter.warn(
            f"the network has no linear classifier into which the calibration and the class prior "
            f"can be folded: with timm alone, {adjustment} (see README.md in the exported folder)"
        )
    return card


def predict_files(folder: Path, images: Sequence[Path]) -> Tensor:
    """Return the probabilities of a folder, run by timm, shape (N, K).

    Those of an ensemble are the weighted mean of its members. timm alone predicts with those that
    it can read; the others are networks of finetune with timm's transforms.

    Args:
        folder: Exported folder.
        images: Image files, shape (N,).

    Raises:
        ModelError: timm reads other class names.
    """
    tree = read_card_json(folder)
    if not is_ensemble(tree):
        return _predict_network(folder, ModelCard.from_json(tree), images)
    members, weights, _ = parse_ensemble(tree)
    classes: Sequence[str] = tree["classes"]
    mean = torch.zeros(len(images), len(classes))
    for member, weight in zip(members, weights, strict=True):
        card = ModelCard.from_json(read_card_json(folder / member))
        probabilities = _predict_network(folder / member, card, images)
        mean += weight / sum(weights) * probabilities[:, get_class_order(card, classes)]
    return mean


def _predict_network(folder: Path, card: ModelCard, images: Sequence[Path]) -> Tensor:
    """Return the probabilities of one network, shape (N, K), adjusted as its README says."""
    config: Mapping[str, Any]
    if _is_timm_model(card):
        network, config = _load_with_timm(folder, card.classes)
    else:
        spec = card.spec
        network = load_model(folder).network
        config = {
            "input_size": spec.input_size,
            "interpolation": spec.interpolation,
            "mean": spec.mean,
            "std": spec.std,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
        }
    options = card.read_options
    build = _build_rgb_transform if options.is_rgb else _build_channels_transform
    prepare = build(config, options)
    with torch.inference_mode():
        logits = torch.cat([network(prepare(path)[None]) for path in images])
    scaled = logits / card.temperature
    if card.shift is not None:
        scaled = scaled + torch.tensor(card.shift)
    return scaled.sigmoid() if card.is_multi_label else scaled.softmax(1)


def _load_with_timm(folder: Path, classes: Sequence[str]) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the network of a folder that timm loads alone, and its preprocessing.

    Raises:
        ModelError: timm reads other class names.
    """
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    if list(config["label_names"]) != list(classes):
        raise ModelError(
            f"{folder} has classes {config['label_names']}, not {list(classes)}. Export it again."
        )
    return network, resolve_model_data_config(network)  # type: ignore[no-untyped-call]


def _build_rgb_transform(
    data_config: Mapping[str, Any], options: ReadOptions
) -> Callable[[Path], Tensor]:
    """Return a function that opens an image file and applies timm's transform."""
    transform = create_transform(**data_config, is_training=False)

    def apply(path: Path) -> Tensor:
        photo = open_plain_photo(path, options) or open_image(path, options=options).to_pil()
        pixels: Tensor = transform(photo)
        return pixels

    return apply


def _build_channels_transform(
    data_config: Mapping[str, Any], options: ReadOptions
) -> Callable[[Path], Tensor]:
    """Return a function that opens an image file and applies timm's transform to each channel.

    A channel is a grey image; all of them are normalised together.
    """
    config = dict(data_config)
    size = (1, *config.pop("input_size")[1:])
    means, stds = (torch.tensor(config.pop(key))[:, None, None] for key in ("mean", "std"))
    channels = [
        create_transform(
            size, **config, mean=(float(mean),), std=(1.0,), is_training=False, normalize=False
        )
        for mean in means
    ]

    def apply(path: Path) -> Tensor:
        whole = get_whole_image(open_image(path, options=options))
        assert isinstance(whole, Planes), "images of other channels than RGB of 8 bits"
        pairs = zip(channels, whole.images, strict=True)
        pixels = torch.cat([torch.as_tensor(resize(plane)) for resize, plane in pairs]) / 255
        return (pixels - means) / stds

    return apply


def _is_timm_model(card: ModelCard) -> bool:
    """Return whether timm alone can read a model."""
    return timm_format.explain_refusal(card.backbone, card.head_name) is None


def _describe_remaining_adjustment(card: ModelCard) -> str:
    """Return the adjustment of the logits that is not folded into the head; "" for none."""
    scale = "" if card.temperature == 1 else f"divide the logits by {card.temperature:.4g}"
    shift = "" if card.shift is None else "add log(target prior / model prior) to the logits"
    return " and ".join(part for part in (scale, shift) if part)
