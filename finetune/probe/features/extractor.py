"""Feature extraction from a network: the input of its head and, optionally, earlier activations."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from finetune.data.dataset import Batch
from finetune.models.batch_norm_folding import fold_batch_norm
from finetune.models.classifier import normalise
from finetune.models.graph_split import SplitNetwork, split_last_groups
from finetune.models.head import capture_head_inputs, find_linear_head
from finetune.models.stage_outputs import Stage, observe_stages
from finetune.probe.features.views import ViewSpec, ViewSubset
from finetune.types import PreprocessSpec

# Tags of outputs are part of the names of feature stores on disk. Changing one makes the stores of
# earlier releases unreachable, so that their features are extracted again.
_FEATURES_TAG = "features"
_ACTIVATIONS_TAG = "maps-{node_name}"
_STAGES_TAG = "stage-means-{digest}"

_MAX_FOLDING_ERROR = 1e-4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActivationLayout:
    """Shape and memory format of the activations of one image.

    Attributes:
        shape: (C, H, W) or (tokens, width).
        channels_last: Whether the channels, the first axis, are the last one in memory.
    """

    shape: torch.Size
    channels_last: bool

    @classmethod
    def from_activations(cls, activations: Tensor) -> "ActivationLayout":
        """Return the layout of a batch of activations (B, ...)."""
        channels_last = activations.ndim == 4 and activations.is_contiguous(
            memory_format=torch.channels_last
        )
        return cls(activations.shape[1:], channels_last)

    def unflatten(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return flattened activations (B, D) as activations (B, ...) on a device."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return rows.view(-1, *self.shape).to(device, memory_format=memory_format)


@dataclass(frozen=True, slots=True)
class FeatureExtractor:
    """Callable that returns the head's input and, if asked for, activations and means of stages.

    Attributes:
        network: Takes normalised images (B, 3, H, W).
        head: The linear classifier of the network; its input is the first output.
        split: The network in two parts; the activations between them are the second output. None
            for the head's input alone.
        folded: Copy of the network with its BatchNorm folded, which is run in its place; it shares
            the head. None to run the network itself.
        stages: Earlier stages whose means over positions are the last output, side by side; empty
            for none.
        observed: Graph of the network that returns the means of the stages, too; None without any.
    """

    network: nn.Module
    head: nn.Linear
    split: SplitNetwork | None = None
    folded: fx.GraphModule | None = None
    stages: tuple[Stage, ...] = ()
    observed: fx.GraphModule | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Tags of the outputs in the names of feature stores, in the order of the outputs."""
        names = [_FEATURES_TAG]
        if self.split is not None:
            names.append(_ACTIVATIONS_TAG.format(node_name=self.split.node_name))
        if self.stages:
            nodes = "\0".join(stage.node_name for stage in self.stages)
            digest = hashlib.sha256(nodes.encode()).hexdigest()[:8]
            names.append(_STAGES_TAG.format(digest=digest))
        return tuple(names)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the outputs, each (B, D)."""
        with capture_head_inputs(self.head) as head_inputs:
            others = self._run(images)
        outputs = [head_inputs[0]]
        if self.split is not None:
            outputs.append(others.pop(0).flatten(1))
        if self.stages:
            outputs.append(torch.cat(others, dim=1))
        return outputs

    def _run(self, images: Tensor) -> list[Tensor]:
        """Compute the logits, and return the activations and the means of the stages."""
        graph = self.folded or self.observed
        if graph is not None:
            result = graph(images)
            return list(result[1:]) if isinstance(result, tuple) else []
        if self.split is None:
            self.network(images)
            return []
        activations = self.split.trunk(images)
        self.split.last_stage(activations)
        return [activations]

    def compute_stage_widths(self, image: Tensor) -> tuple[int, ...]:
        """Return the number of means of each stage for an example (1, 3, H, W)."""
        if self.observed is None:
            return ()
        with torch.inference_mode():
            return tuple(means.shape[1] for means in self.observed(image)[-len(self.stages) :])

    def compute_activation_layout(self, image: Tensor) -> ActivationLayout | None:
        """Return the layout of an example's (1, 3, H, W) activations, None without a split."""
        if self.split is None:
            return None
        with torch.inference_mode():
            return ActivationLayout.from_activations(self.split.trunk(image))


def create_feature_extractor(
    network: nn.Module, *, depth: int = 1, with_stages: bool = False
) -> FeatureExtractor:
    """Return an extractor of what the last ``depth`` layer groups of a network are fitted on.

    Args:
        network: A network with a linear head, in eval mode.
        depth: 1 for the head's input alone; with more, also for the activations before the last
            ``depth`` layer groups, the head one of them.
        with_stages: Whether to extract the means of earlier stages, too, from a network that can
            be traced.
    """
    head = find_linear_head(network)
    assert head is not None, "checked in builders/constraints"
    split = None if depth == 1 else split_last_groups(network, depth)
    extractor = FeatureExtractor(network, head, split)
    if not with_stages:
        return extractor
    found = observe_stages(network, inner_node=None if split is None else split.node_name)
    if found is None:
        return extractor
    observed, stages = found
    return replace(extractor, observed=observed, stages=stages)


def drop_inexact_stages(
    extractor: FeatureExtractor, images: Tensor, *, is_distributed: bool = False
) -> FeatureExtractor:
    """Return the extractor, without its stages if their graph changes the other outputs.

    Args:
        extractor: Extractor whose network is in eval mode; the same on all ranks.
        images: Normalised images (B, 3, H, W) to compare the outputs on; those of rank 0 decide.
        is_distributed: Whether all ranks of a process group call it.
    """
    if not extractor.stages:
        return extractor
    plain = replace(extractor, stages=(), observed=None)
    message: list[Any] = [_compute_error(plain, extractor, images)]
    if is_distributed:
        dist.broadcast_object_list(message, src=0)
    if message[0] <= _MAX_FOLDING_ERROR:
        return extractor
    logger.info("features of earlier stages are not extracted: relative error %g", message[0])
    return plain


def fold_where_exact(
    extractor: FeatureExtractor, images: Tensor | None, *, is_distributed: bool = False
) -> FeatureExtractor:
    """Return an extractor that runs a copy of its network with BatchNorm folded.

    The given extractor is returned where nothing can be folded, or the outputs differ by more than
    ``_MAX_FOLDING_ERROR``.

    Args:
        extractor: Extractor whose network is in eval mode; the same on all ranks.
        images: Normalised images (B, 3, H, W) to compare the outputs on, in full precision; None on
            other ranks than 0, whose result applies to all.
        is_distributed: Whether all ranks of a process group call it.
    """
    inner_node = None if extractor.split is None else extractor.split.node_name
    folded_network = fold_batch_norm(
        extractor.network, inner_node=inner_node, stages=extractor.stages
    )
    if folded_network is None:
        return extractor
    folded = replace(extractor, folded=folded_network)
    message: list[Any] = [None if images is None else _compute_error(extractor, folded, images)]
    if is_distributed:
        dist.broadcast_object_list(message, src=0)
    if message[0] <= _MAX_FOLDING_ERROR:
        return folded
    logger.info("features are extracted without folding BatchNorm: relative error %g", message[0])
    return extractor


def _compute_error(extractor: FeatureExtractor, folded: FeatureExtractor, images: Tensor) -> float:
    """Return the largest relative error of the outputs, infinity where they are not finite.

    The second extractor may have further outputs, with a row for each image.
    """
    with (
        torch.inference_mode(),
        torch.autocast(images.device.type, enabled=False),
        # TF32, in which a GPU computes convolutions by default, has relative errors of 1e-3
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
    ):
        outputs = extractor(images)
        try:
            others = folded(images)
            pairs = zip(outputs, others, strict=False)
            errors = [float((a - b).norm() / a.norm().clamp(min=1e-12)) for a, b in pairs]
            errors += [0.0 if len(other) == len(images) else math.inf for other in others]
        except Exception:  # a network's own operations raise errors of any type
            return math.inf
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def extract_features(
    extractor: FeatureExtractor,
    batches: Iterable[Batch],
    *,
    spec: PreprocessSpec,
    device: torch.device,
    views: ViewSpec | ViewSubset,
    autocast: AbstractContextManager[object] | None = None,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield the rows (B,) of each batch and its outputs, each float32 (B, V, D), on the CPU.

    Args:
        extractor: An extractor whose network is in eval mode, on the device.
        batches: Batches of pixels (B, (1 + num_crops) * H, W, C).
        spec: Preprocessing of the network, for normalisation.
        device: Device of the network.
        views: The V views of each image.
        autocast: Autocast context of the forward passes, or None.
    """
    with autocast or nullcontext():
        for batch in batches:
            with torch.inference_mode():
                pixels = batch["image"].to(device, non_blocking=True)
                outputs_by_view = [
                    extractor(normalise(view, mean=spec.mean, std=spec.std))
                    for view in views.iter_views(pixels)
                ]
                outputs = [
                    torch.stack(output, dim=1).float().cpu()
                    for output in zip(*outputs_by_view, strict=True)
                ]
            yield batch["index"], [output.clone() for output in outputs]
