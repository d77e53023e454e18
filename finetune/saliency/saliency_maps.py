"""Saliency maps of images, with a test of each: is it better than a random map?

A map is trusted only if deleting what it marks lowers the probability of the class more than
deleting what random maps of the same smoothness mark.
"""

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.models.classifier import eval_mode
from finetune.saliency.deletion import (
    NUM_RANDOM_MAPS,
    compute_deletion_scores,
    draw_random_maps,
    resize_maps,
)
from finetune.saliency.spatial_layer import SpatialLayer, find_spatial_layer

Method = Literal["GradCAM", "GradCAMpp", "LayerCAM", "XGradCAM"]
"""Name of a class in ``torchcam.methods``."""

DEFAULT_METHOD: Method = "LayerCAM"

MIN_TESTED = 3
"""Maps from which on all of them are judged together, too."""

MAX_P_VALUE = 0.05
"""Probability with which chance alone would let as many maps pass, above which none is trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class SaliencyResult:
    """Saliency map of an image and its test.

    Attributes:
        map: Saliency of each pixel of the network's input, float32 in [0, 1], shape (H, W).
        target: Index of the class that the map is of.
        probability: Its probability, without calibration.
        deletion: Deletion score of the map; the smaller, the better.
        random_deletions: Deletion scores of random maps.
        is_trusted: Whether the map may be shown.
    """

    map: NDArray[np.float32]
    target: int
    probability: float
    deletion: float
    random_deletions: tuple[float, ...]
    is_trusted: bool

    @property
    def random_deletion(self) -> float:
        """The mean deletion score of the random maps."""
        return sum(self.random_deletions) / len(self.random_deletions)


@dataclass(frozen=True, slots=True, eq=False)
class SaliencyMaps:
    """Saliency maps of several images, and what is to be said of them.

    Attributes:
        results: Result of each image; None where there was no time for it, or no map can be made.
        layer: Layer that the maps are made from; empty without one.
        reason: Why there are no maps, or why none is trusted; empty if there are.
    """

    results: tuple[SaliencyResult | None, ...]
    layer: str = ""
    reason: str = ""

    @property
    def num_tested(self) -> int:
        """The number of maps."""
        return sum(result is not None for result in self.results)

    @property
    def num_trusted(self) -> int:
        """The number of trusted maps."""
        return sum(result is not None and result.is_trusted for result in self.results)

    def describe(self) -> str:
        """Return a sentence on how the maps did beside random ones."""
        tested = [result for result in self.results if result is not None]
        if not tested:
            return self.reason
        own = sum(result.deletion for result in tested) / len(tested)
        random = sum(result.random_deletion for result in tested) / len(tested)
        passed = sum(_beats_random(result) for result in tested)
        verdict = f" {self.reason}" if self.reason else ""
        return (
            f"{passed} of {len(tested)} maps beat all of {NUM_RANDOM_MAPS} random maps "
            f"({len(tested) / (NUM_RANDOM_MAPS + 1):.1f} would by chance); mean deletion score "
            f"{own:.2f}, of random maps {random:.2f}.{verdict}"
        )


def compute_saliency(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    num_images: int,
    targets: Sequence[int] | None = None,
    is_multi_label: bool = False,
    budget_seconds: float | None = None,
    seed: int = 0,
    method: Method = DEFAULT_METHOD,
    on_image: Callable[[], None] | None = None,
) -> SaliencyMaps:
    """Return saliency maps of images, each tested; networks without a fitting layer have a reason.

    From three maps on, none is trusted if chance alone would let as many beat their random maps.

    Args:
        network: Network from images (B, C, H, W) to logits (B, K); left as it is.
        batches: Normalised images on the network's device, shape (B, C, H, W); read as needed.
        num_images: Number N of images in all batches.
        targets: Class that each map is of, shape (N,); None for the predicted one.
        is_multi_label: Whether classes do not exclude each other.
        budget_seconds: Time after which no further image is begun; None for no limit.
        seed: Seed of the random maps.
        method: Method of torchcam.
        on_image: Callback after each image.
    """
    start = time.monotonic()
    results: list[SaliencyResult | None] = []
    layer: SpatialLayer | None = None
    with eval_mode(network):
        for images in batches:
            layer = layer or find_spatial_layer(network, torch.cat([images[:1], images[-1:]]))
            if layer is None:
                return SaliencyMaps((None,) * num_images, reason=_explain_missing_layer(network))
            first = len(results)
            chosen = None if targets is None else list(targets[first : first + len(images)])
            try:
                maps, logits, chosen = _compute_maps(network, images, layer, chosen, method)
            except RuntimeError as error:  # of autograd, in a layer that changes in place
                reason = str(error).partition("\n")[0].rstrip(".")
                return SaliencyMaps(
                    (None,) * num_images, layer.name, f"No saliency map of {layer.name}: {reason}."
                )
            for row in range(len(maps)):
                if _is_over(start, budget_seconds):
                    break
                result = _test_map(
                    network,
                    images[row],
                    maps[row],
                    logits[row],
                    target=chosen[row],
                    is_multi_label=is_multi_label,
                    seed=seed + first + row,
                )
                results.append(result)
                if on_image is not None:
                    on_image()
            if _is_over(start, budget_seconds):
                break
    rest = (None,) * (num_images - len(results))
    return _judge((*results, *rest), "" if layer is None else layer.name)


def _explain_missing_layer(network: nn.Module) -> str:
    return (
        f"{type(network).__name__} has no layer with positions of the image that the prediction "
        f"depends on, so that it has no saliency map."
    )


def _is_over(start: float, budget_seconds: float | None) -> bool:
    return budget_seconds is not None and time.monotonic() - start > budget_seconds


def _compute_maps(
    network: nn.Module,
    images: Tensor,
    layer: SpatialLayer,
    targets: list[int] | None,
    method: Method,
) -> tuple[Tensor, Tensor, list[int]]:
    """Return maps (B, h, w) in [0, 1] by torchcam, the logits (B, K), and the classes."""
    methods: Any = importlib.import_module("torchcam.methods")  # takes a second, and matplotlib
    create = getattr(methods, method)
    with (
        torch.enable_grad(),
        create(network, target_layer=layer.name, reshape_transform=layer.arrange) as extractor,
    ):
        logits = network(images.detach().clone().requires_grad_(True))
        if targets is None:
            targets = [int(index) for index in logits.argmax(dim=1)]
        (maps,) = extractor(targets, logits)
    return torch.nan_to_num(maps.detach().float()).cpu(), logits.detach(), targets


def _test_map(
    network: nn.Module,
    image: Tensor,
    map_hw: Tensor,
    logits: Tensor,
    *,
    target: int,
    is_multi_label: bool,
    seed: int,
) -> SaliencyResult:
    """Return a map with its deletion score and those of random maps."""
    size = (int(image.shape[1]), int(image.shape[2]))
    random = draw_random_maps(map_hw, num_maps=NUM_RANDOM_MAPS, seed=seed)
    maps = resize_maps(torch.cat([map_hw[None], random]), size)
    own, *others = compute_deletion_scores(
        network, image, maps.to(image.device), target=target, is_multi_label=is_multi_label
    )
    scores = logits.double()
    probabilities = scores.sigmoid() if is_multi_label else scores.softmax(dim=0)
    result = SaliencyResult(
        maps[0].clamp(0, 1).numpy(),
        target,
        float(probabilities[target]),
        own,
        tuple(others),
        is_trusted=False,
    )
    is_empty = float(map_hw.max() - map_hw.min()) < 0.5  # normalized: a flat map stays near zero
    return replace(result, is_trusted=not is_empty and _beats_random(result))


def _beats_random(result: SaliencyResult) -> bool:
    return result.deletion < min(result.random_deletions)


def _judge(results: tuple[SaliencyResult | None, ...], layer: str) -> SaliencyMaps:
    """Return the maps, none of which is trusted if chance explains that some passed."""
    maps = SaliencyMaps(results, layer)
    if maps.num_tested >= MIN_TESTED:
        p_value = _compute_p_value(maps.num_trusted, maps.num_tested)
        if p_value > MAX_P_VALUE:
            distrusted = tuple(r and replace(r, is_trusted=False) for r in results)
            reason = "Maps of this model beat random ones no more often than by chance"
            return SaliencyMaps(distrusted, layer, f"{reason} and would mislead, so none is shown.")
    elif maps.num_trusted == 0 and maps.num_tested:
        photos = "this photo" if maps.num_tested == 1 else "these photos"
        reason = f"Saliency maps of {photos} are no better than random ones, so none is shown."
        return replace(maps, reason=reason)
    return maps


def _compute_p_value(num_passed: int, num_tested: int) -> float:
    """Return the probability that chance lets at least as many maps beat their random ones."""
    from scipy.stats import binom

    return float(binom.sf(num_passed - 1, num_tested, 1 / (NUM_RANDOM_MAPS + 1)))
