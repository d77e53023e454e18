"""Images, backbone and linear probe from which the variants of the fine-tuning loop start."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from finetune.evaluation.calibration import fit_temperature
from finetune.models.backbone import create_network
from finetune.probe.cross_validation import CrossValidatedHead, fit_head
from scripts.benchmarks.lib.comparison.image_folders import draw_images
from scripts.benchmarks.lib.comparison.study import Case, Weights
from scripts.benchmarks.lib.loop_images import (
    crop_centre,
    crop_randomly,
    draw_validation_rows,
    load_images,
    stack_batch,
)
from scripts.benchmarks.lib.loop_optimizer import ProbedNetwork, measure_change_per_lr

BATCH_SIZE = 32

_MEASURED_BATCHES, _MEASURED_IMAGES, _MEASUREMENT_SEED = 4, 64, 5
_MEASUREMENT_SMOOTHING = 0.1
_TEMPERATURES = np.geomspace(0.05, 20, 80)

Scores = list[float]  # accuracy, log loss, macro-F1, log loss after a temperature


@dataclass(frozen=True)
class Part:
    """Images (H, W, 3), uint8, and their class indices."""

    images: Sequence[Tensor]
    labels: NDArray[np.int64]

    def select(self, rows: NDArray[np.int64]) -> "Part":
        """Return some of the images."""
        return Part([self.images[row] for row in rows], self.labels[rows])


class ProbeTask:
    """Backbone, linear probe and images, from which every variant starts.

    Attributes:
        num_train: Number of training images.
        num_val: Number of validation images.
        probe: The fitted probe.
        probe_scores: Its scores of the validation and the test images.

    Args:
        case: Folder of images.
        weights: Pretrained weights.
        side: Side of the crops in pixels.
        seed: Seed of the training and validation images.
        is_mirrored: Whether the probe and training use mirrored images, too.
        is_bf16: Whether the network runs in bfloat16 autocast.
    """

    def __init__(
        self,
        case: Case,
        weights: Weights,
        *,
        side: int,
        seed: int,
        is_mirrored: bool = True,
        is_bf16: bool = False,
    ) -> None:
        self._side, self._is_mirrored, self._is_bf16 = side, is_mirrored, is_bf16
        drawn = draw_images(case, seed=seed)
        self._test = Part(*load_images(drawn.test, side=self._side))
        images = Part(*load_images(drawn.train, side=self._side))
        is_val = draw_validation_rows(images.labels, seed=seed)
        self._train = images.select(np.flatnonzero(~is_val))
        self._val = images.select(np.flatnonzero(is_val))
        network = create_network(
            weights.backbone,
            num_classes=len(drawn.train),
            weights=str(weights.file),
            kwargs=weights.kwargs,
            pretrained_cfg=weights.pretrained_cfg,
        )
        self._stack = partial(stack_batch, mean=network.spec.mean, std=network.spec.std)
        backbone: Any = network.module
        backbone.reset_classifier(0)
        self._backbone: nn.Module = backbone.to(memory_format=torch.channels_last)
        self.probe = self._fit_probe(len(drawn.train))
        self._changes: dict[tuple[float, float], float] = {}
        self.num_train, self.num_val = len(self._train.labels), len(self._val.labels)
        self.probe_scores = self.score(self.build_network())

    def _fit_probe(self, num_classes: int) -> CrossValidatedHead:
        views = [self._compute(self._backbone, self._train.images).numpy()]
        if self._is_mirrored:
            mirrored = [image.flip(1) for image in self._train.images]
            views.append(self._compute(self._backbone, mirrored).numpy())
        labels = self._train.labels
        return fit_head(views, labels, np.ones(len(labels)), num_classes=num_classes)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._is_bf16)

    @torch.inference_mode()
    def _compute(self, module: nn.Module, images: Sequence[Tensor]) -> Tensor:
        """Return the output of a module for the centres of images, in evaluation mode."""
        module.eval()
        outputs = []
        for first in range(0, len(images), BATCH_SIZE):
            crops = [crop_centre(i, side=self._side) for i in images[first : first + BATCH_SIZE]]
            with self._autocast():
                outputs.append(module(self._stack(crops)).float())
        return torch.cat(outputs)

    def score(self, module: nn.Module) -> tuple[Scores, Scores]:
        """Return the scores of the validation and the test images.

        The fourth is the log loss after the temperature that suits the validation images best.
        """
        val = self._compute(module, self._val.images)
        temperature = self._fit_calibration(val)
        return _score_logits(val, self._val.labels, temperature), _score_logits(
            self._compute(module, self._test.images), self._test.labels, temperature
        )

    def score_validation(self, module: nn.Module) -> Scores:
        """Return the scores of the validation images."""
        logits = self._compute(module, self._val.images)
        return _score_logits(logits, self._val.labels, self._fit_calibration(logits))

    def _fit_calibration(self, logits: Tensor) -> float:
        return fit_temperature(logits.double(), torch.from_numpy(self._val.labels))

    def build_network(self, *, temperature: float = 1.0) -> ProbedNetwork:
        """Return a network with the probe's head, divided by a temperature."""
        head = self.probe.head
        network = ProbedNetwork(
            copy.deepcopy(self._backbone), head.weight / temperature, head.bias / temperature
        )
        return network.to(memory_format=torch.channels_last)

    def fit_temperature(self, label_smoothing: float) -> float:
        """Return the divisor of logits that minimises the loss of out-of-fold predictions."""
        logits = self.probe.held_out_probabilities.clamp_min(1e-12).log()
        labels = torch.from_numpy(self._train.labels[self.probe.held_out_rows])

        def compute_loss(temperature: float) -> float:
            scaled = logits / temperature
            return cross_entropy(scaled, labels, label_smoothing=label_smoothing).item()

        return float(min(_TEMPERATURES, key=compute_loss))

    def _draw_batch(
        self, rows: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        draw = partial(crop_randomly, side=self._side, is_mirrored=self._is_mirrored)
        crops = [draw(self._train.images[row], generator) for row in rows]
        return self._stack(crops), torch.from_numpy(self._train.labels[rows])

    def measure_lr(
        self, network: ProbedNetwork, *, feature_change: float, layer_decay: float
    ) -> float:
        """Return the rate at which a step changes the features by a fraction of their spread.

        Networks with the same head and the same layer decay are measured once.
        """
        key = (layer_decay, float(network.head.weight.detach().norm()))
        if key not in self._changes:
            self._changes[key] = self._measure_change(network, layer_decay=layer_decay)
        return feature_change / self._changes[key]

    def _measure_change(self, network: ProbedNetwork, *, layer_decay: float) -> float:
        """Return the relative change of the features by a step, per unit of the learning rate."""
        network.eval()
        generator = np.random.default_rng(_MEASUREMENT_SEED)
        order = generator.permutation(self.num_train)
        images = [self._train.images[row] for row in order[-_MEASURED_IMAGES:]]

        def iter_losses() -> Iterator[Tensor]:
            for index in range(_MEASURED_BATCHES):
                rows = np.arange(index * BATCH_SIZE, (index + 1) * BATCH_SIZE) % len(order)
                pixels, labels = self._draw_batch(order[rows], generator)
                with self._autocast():
                    logits = network(pixels)
                yield cross_entropy(logits.float(), labels, label_smoothing=_MEASUREMENT_SMOOTHING)

        return measure_change_per_lr(
            network,
            iter_losses(),
            partial(self._compute, network.backbone, images),
            num_batches=_MEASURED_BATCHES,
            layer_decay=layer_decay,
        )

    def iter_batches(self, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, without the incomplete one."""
        order = generator.permutation(self.num_train)
        for index in range(self.steps_per_epoch):
            yield self._draw_batch(order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE], generator)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return max(1, self.num_train // BATCH_SIZE)

    def compute_logits(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """Return the logits of a training batch, float32."""
        with self._autocast():
            logits: Tensor = network(pixels)
        return logits.float()


def _score_logits(logits: Tensor, labels: NDArray[np.int64], temperature: float) -> Scores:
    found, target = logits.argmax(dim=1).numpy(), torch.from_numpy(labels)
    loss = cross_entropy(logits, target).item()
    calibrated = cross_entropy(logits / temperature, target).item()
    f1 = f1_score(labels, found, average="macro")
    return [round(float(v), 4) for v in ((found == labels).mean(), loss, f1, calibrated)]
