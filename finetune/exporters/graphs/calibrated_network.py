"""Network of an exported graph: calibrated logits of pixels, or probabilities of photos.

Shapes: B images, C channels, H and W height and width, K classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.ensemble_card import get_class_order
from finetune.exporters.folded_head import fold_adjustment_into_head
from finetune.exporters.graphs.photo_preprocessing import PhotoPreprocessing
from finetune.types import PreprocessSpec

_MAX_LEVEL = 255


class CalibratedMember(nn.Module):
    """Network of one model with its temperature, class prior and order of classes.

    Args:
        bundle: Model of one network.
        classes: Class names in the order of the outputs.
        weight: Weight of its probabilities.
    """

    mean: Tensor
    std: Tensor
    shift: Tensor
    order: Tensor

    def __init__(self, bundle: ModelBundle, classes: Sequence[str], weight: float) -> None:
        super().__init__()
        bundle = fold_adjustment_into_head(bundle)
        card, spec = bundle.card, bundle.card.spec
        self.network = _copy_to_cpu(bundle.network)
        self.temperature = card.temperature
        self.is_multi_label = card.is_multi_label
        self.weight = weight
        order = get_class_order(card, classes)
        self.is_reordered = order != list(range(len(order)))
        self.is_shifted = card.shift is not None
        self.register_buffer("mean", torch.tensor(spec.mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(spec.std)[None, :, None, None])
        self.register_buffer("shift", torch.tensor(card.shift or [0.0] * len(order)))
        self.register_buffer("order", torch.tensor(order))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return calibrated logits, shape (B, K), of pixels in [0, 1], shape (B, C, H, W)."""
        return self.compute_logits((pixels - self.mean) / self.std)

    def compute_logits(self, normalised: Tensor) -> Tensor:
        """Return calibrated logits, shape (B, K), of normalised pixels, shape (B, C, H, W)."""
        logits: Tensor = self.network(normalised)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.is_shifted:
            logits = logits + self.shift
        return logits[:, self.order] if self.is_reordered else logits

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        """Return class probabilities, shape (B, K), of calibrated logits."""
        return logits.sigmoid() if self.is_multi_label else logits.softmax(dim=1)


class LogitsGraph(nn.Module):
    """Graph from normalised pixels, float32, (B, C, H, W), to calibrated logits, (B, K).

    The pixels are normalised by the first member of an ensemble. The logits of an ensemble are
    those of its mean probabilities: their logarithms, or of a multi-label model their log odds.

    Args:
        bundle: Model, or an ensemble whose members take images of the same size.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        super().__init__()
        self.members = _build_members(bundle)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        first = self.members[0]
        assert isinstance(first, CalibratedMember)
        if len(self.members) == 1:
            return first.compute_logits(pixels)
        mean = _compute_mean(self.members, [pixels * first.std + first.mean] * len(self.members))
        mean = mean.clamp(min=torch.finfo(torch.float32).tiny)
        return torch.logit(mean, eps=1e-7) if first.is_multi_label else mean.log()


class PhotoGraph(nn.Module):
    """Graph from photos, uint8, (B, H, W, C), to class probabilities, float32, (B, K).

    All photos of a batch have the same size; each member of an ensemble has its own preprocessing.

    Args:
        bundle: Model, or an ensemble.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        super().__init__()
        self.members = _build_members(bundle)
        specs = [_strip_normalisation(m.card.spec) for m in bundle.members or (bundle,)]
        distinct = list(dict.fromkeys(specs))
        self.views = [distinct.index(spec) for spec in specs]
        self.preprocessing = nn.ModuleList([PhotoPreprocessing(spec) for spec in distinct])

    def forward(self, photos: Tensor) -> Tensor:
        """Return the probabilities."""
        pixels = [resize(photos) / _MAX_LEVEL for resize in self.preprocessing]
        return _compute_mean(self.members, [pixels[view] for view in self.views])


def _build_members(bundle: ModelBundle) -> nn.ModuleList:
    pairs = zip(bundle.members or (bundle,), bundle.weights or (1.0,), strict=True)
    classes = bundle.card.classes
    return nn.ModuleList([CalibratedMember(model, classes, weight) for model, weight in pairs])


def _compute_mean(members: nn.ModuleList, pixels: Sequence[Tensor]) -> Tensor:
    """Return the weighted mean of the members' probabilities, shape (B, K).

    Args:
        members: Members of an ensemble, or one network.
        pixels: Pixels in [0, 1] for each member, (B, C, H, W).
    """
    terms = []
    for member, own_pixels in zip(members, pixels, strict=True):
        assert isinstance(member, CalibratedMember)
        probabilities = member.compute_probabilities(member(own_pixels))
        terms.append(probabilities if len(members) == 1 else probabilities * member.weight)
    mean = terms[0]
    for term in terms[1:]:
        mean = mean + term
    return mean


def _copy_to_cpu(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose tensors have the usual memory format."""
    copied = copy.deepcopy(network).eval()
    copied.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copied


def _strip_normalisation(spec: PreprocessSpec) -> PreprocessSpec:
    """Return the preprocessing of the pixels before normalisation, equal for equal pixels."""
    if spec.crop_mode == "border":  # the mean is the colour of the border
        return replace(spec, std=(1.0,) * len(spec.std))
    return replace(spec, mean=(0.0,) * len(spec.mean), std=(1.0,) * len(spec.std))
