"""Folder for transformers' image-classification pipeline: timm's own files and what is added.

transformers runs timm's networks by its class ``TimmWrapperForImageClassification``, and prepares
images by timm's transform of ``config.json``. The folder needs no code besides both libraries
(``trust_remote_code``), and timm and finetune load it, too.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from finetune.bundle.bundle import ModelBundle, save_bundle
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.data.images.decode import decode_image
from finetune.errors import ModelError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.folded_head import fold_adjustment_into_head
from finetune.lookup import is_import_path
from finetune.types import ReadOptions, Reporter

_TORCHVISION_MODELS = ("googlenet", "alexnet")

_OWN_ARGUMENTS = ("num_classes", "pretrained")
"""Arguments of ``timm.create_model`` that transformers gives itself."""

_PLAIN_MODES = ("RGB", "L", "CMYK")
"""Modes of images that Pillow converts to RGB as finetune does."""

_USAGE = """
Use the model with transformers:

```python
from transformers import pipeline

classifier = pipeline("image-classification", model="THIS_FOLDER", top_k={top_k})
print(classifier("photo.jpg"))
```

`AutoModelForImageClassification` and `AutoImageProcessor` load the folder, too.{images}
"""

_IMAGES = """ The pipeline reads
images as RGB of 8 bits; finetune puts transparent pixels on white, and scales images of more than 8
bits{scale}. Convert such images before."""


def explain_refusal(bundle: ModelBundle, options: ExportOptions) -> str | None:
    """Return why transformers cannot load a model, and the remedy; None where it can."""
    del options
    card = bundle.card
    begin = "The huggingface format cannot apply to"
    if bundle.members:
        return (
            f"{begin} an ensemble, which transformers does not know. Export its members one by "
            f"one, average the weights of runs of one start with --soup greedy, or use --format "
            f"timm."
        )
    if not any(True for _ in bundle.network.parameters()):
        return (
            f"{begin} {bundle.source}, a file of another library, whose weights are part of a "
            f"graph. Export the run or bundle that it was made of."
        )
    if is_import_path(card.backbone):
        return (
            f"{begin} '{card.backbone}', a network of one's own, which neither timm nor "
            f"transformers knows. Use --format onnx, or copy the bundle and the module."
        )
    if card.backbone.partition(".")[0] in _TORCHVISION_MODELS:
        return (
            f"{begin} '{card.backbone}': transformers builds networks by timm, which does not have "
            f"this one of torchvision. Use --format timm, which reads it after "
            f"'import finetune.timm_models', or --format onnx."
        )
    if card.head_name not in (None, "linear"):
        return (
            f"{begin} model.head={card.head_name}, whose hidden layers timm's networks in "
            f"transformers do not have. Use --format onnx."
        )
    if not card.read_options.is_rgb:
        return (
            f"{begin} a model of {_describe_pixels(card.read_options)}: transformers' pipeline "
            f"reads every image as RGB of 8 bits. Use --format timm, whose README shows how to "
            f"prepare such images, or --format onnx."
        )
    return None


def write_model(
    bundle: ModelBundle, folder: Path, options: ExportOptions, reporter: Reporter
) -> ModelCard:
    """Write a model with calibration and prior in its head, and return the card of what it is."""
    del options
    exported = fold_adjustment_into_head(bundle)
    card = exported.card
    save_bundle(exported.network, card, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config = {**config, **_build_transformers_entries(card, config.get("model_args") or {})}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text + _render_usage(card), encoding="utf-8")
    if card.temperature != 1 or card.shift is not None:
        reporter.warn(
            "the network has no linear classifier into which the calibration and the class prior "
            "can be folded: the pipeline of transformers gives probabilities without them (see "
            "README.md in the exported folder)"
        )
    return card


def predict_files(folder: Path, images: Sequence[Path]) -> Tensor:
    """Return the probabilities of a folder, run by transformers' pipeline, shape (N, K).

    The pipeline reads the files itself, but for those with opacity or more than 8 bits, of which it
    gets what the guide advises: RGB of 8 bits on white.

    Args:
        folder: Exported folder.
        images: Image files, shape (N,).

    Raises:
        ModelError: transformers reads other class names.
    """
    card = ModelCard.from_json(read_card_json(folder))
    with hide_loading_messages():
        from transformers import pipeline

        classifier = pipeline("image-classification", model=str(folder), device="cpu")
        names: Any = classifier.model.config.id2label
        if [names[index] for index in sorted(names)] != list(card.classes):
            raise ModelError(
                f"{folder} has classes {list(names.values())}, not {list(card.classes)}. Export "
                f"it again."
            )
        answers = [
            classifier(_read_as_user(file, card.read_options), top_k=len(card.classes))
            for file in images
        ]
    scores = [{row["label"]: row["score"] for row in answer} for answer in answers]
    probabilities = torch.tensor([[row[name] for name in card.classes] for row in scores])
    return _apply_remaining_adjustment(probabilities, card)


@contextmanager
def hide_loading_messages() -> Iterator[None]:
    """Hide the progress bars and warnings of transformers within the block.

    A pipeline that gets single images warns that a dataset would be faster.
    """
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _build_transformers_entries(card: ModelCard, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of ``config.json`` that timm's own does not have, or has otherwise."""
    task = "multi_label" if card.is_multi_label else "single_label"
    return {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "problem_type": f"{task}_classification",  # a sigmoid or a softmax
        "model_args": {key: v for key, v in arguments.items() if key not in _OWN_ARGUMENTS},
    }


def _render_usage(card: ModelCard) -> str:
    scale = "" if card.pixel_range is None else f" by the range {card.pixel_range}"
    return _USAGE.format(top_k=len(card.classes), images=_IMAGES.format(scale=scale))


def _read_as_user(file: Path, options: ReadOptions) -> str | Image.Image:
    """Return the path of a file that the pipeline reads rightly, else its pixels as RGB."""
    try:
        with Image.open(file) as image:
            is_plain = image.mode in _PLAIN_MODES and "transparency" not in image.info
    except UnidentifiedImageError:  # a format that finetune reads without Pillow
        is_plain = False
    return str(file) if is_plain else decode_image(file, options=options)


def _apply_remaining_adjustment(probabilities: Tensor, card: ModelCard) -> Tensor:
    """Return probabilities with temperature and prior that the head does not include, (N, K)."""
    if card.temperature == 1 and card.shift is None:
        return probabilities
    scores = probabilities.double()
    logits = scores.logit() if card.is_multi_label else scores.log()
    scaled = logits / card.temperature
    if card.shift is not None:
        scaled = scaled + torch.tensor(card.shift, dtype=torch.float64)
    return (scaled.sigmoid() if card.is_multi_label else scaled.softmax(1)).float()


def _describe_pixels(options: ReadOptions) -> str:
    channels = f"{options.num_channels} channel{'' if options.num_channels == 1 else 's'}"
    return channels if options.bit_depth == 8 else f"{channels} of {options.bit_depth} bits"
