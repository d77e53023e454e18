"""Published ImageNet error rates of pretrained weights and of classic architectures."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import timm
import torchvision
from timm.models import PretrainedCfg

from finetune.commands.compare.imagenet_figures import (
    ARCHITECTURE_FIGURES,
    TIMM_FIGURES,
    TIMM_SOURCE,
)
from finetune.models import torchvision_models

_TORCHVISION_SOURCE = "torchvision's weight metadata"

torchvision_models.register()


@dataclass(frozen=True, slots=True)
class ImageNetErrorRates:
    """Error rates on the ImageNet validation set with a single centre crop, in percent.

    Attributes:
        top1: Images whose most probable class is wrong.
        top5: Images whose class is not among the five most probable ones.
        source: Publication of the figures, and which weights they are of.
        is_of_weights: Whether they are of the very weights; else of another training of the
            architecture.
    """

    top1: float
    top5: float
    source: str
    is_of_weights: bool


def find_imagenet_error_rates(backbone: str, *, weights: str = "hub") -> ImageNetErrorRates | None:
    """Return the published error rates of the weights, or None.

    Those of another training of the architecture stand in for hub weights without figures; of a
    file of unknown name nothing is known, not even that it was trained on ImageNet.

    Args:
        backbone: timm name, with or without a tag.
        weights: "hub" for the weights that timm's ``pretrained_cfg`` names, or a file or folder,
            which is recognised where its name is that of a published file with its hash
            (``resnet18-f37072fd.pth``).
    """
    architecture = backbone.partition(".")[0]
    if weights == "hub":
        cfg = _find_cfg(backbone) if timm.is_model(architecture) else None
        figures = None if cfg is None else _find_by_tag(architecture, cfg)
        return figures or _find_by_architecture(architecture)
    return _find_by_file(architecture, Path(weights).name)


def _find_cfg(backbone: str) -> PretrainedCfg | None:
    """Return timm's config of tagged weights; None for a tag that it does not know."""
    try:
        return timm.get_pretrained_cfg(backbone)
    except RuntimeError:
        return None


def _find_by_tag(architecture: str, cfg: PretrainedCfg) -> ImageNetErrorRates | None:
    """Return timm's figures of tagged weights, or torchvision's of the file they are."""
    name = f"{architecture}.{cfg.tag}"
    if name in TIMM_FIGURES:
        top1, top5, side = TIMM_FIGURES[name]
        return ImageNetErrorRates(top1, top5, f"{TIMM_SOURCE}: {name} at {side} px", True)
    return _find_in_torchvision(_get_name(cfg.url))


def _find_by_file(architecture: str, file_name: str) -> ImageNetErrorRates | None:
    """Return the figures of a weights file that has the name of a published one."""
    for name in timm.list_pretrained(f"{architecture}.*"):
        cfg = timm.get_pretrained_cfg(name)
        # a name without a hash says nothing of the content
        if cfg is not None and "-" in file_name and _get_name(cfg.url) == file_name:
            return _find_by_tag(architecture, cfg)
    return _find_in_torchvision(file_name)


def _find_in_torchvision(file_name: str) -> ImageNetErrorRates | None:
    """Return torchvision's figures of its weights file of this name."""
    if not file_name:
        return None
    for model in torchvision.models.list_models(module=torchvision.models):
        for entry in torchvision.models.get_model_weights(model):
            accuracies = entry.meta["_metrics"].get("ImageNet-1K")
            if accuracies is not None and _get_name(entry.url) == file_name:
                top1, top5 = (round(100 - accuracies[key], 3) for key in ("acc@1", "acc@5"))
                source = f"{_TORCHVISION_SOURCE}: {type(entry).__name__}.{entry.name}"
                return ImageNetErrorRates(top1, top5, source, True)
    return None


def _find_by_architecture(architecture: str) -> ImageNetErrorRates | None:
    figures = ARCHITECTURE_FIGURES.get(architecture)
    return None if figures is None else ImageNetErrorRates(*figures, is_of_weights=False)


def _get_name(url: object) -> str:
    """Return the name of the file at a URL; "" without one."""
    return Path(urlparse(url).path).name if isinstance(url, str) else ""
