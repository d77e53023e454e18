"""The LightningModule: steps, exact metrics, an optimizer that knows every group from step 0."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.func import functional_call
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.bundle.bundle import AVERAGE_KEY
from finetune.bundle.model_card import CARD_KEY, get_train_counts
from finetune.data.dataset import Batch
from finetune.distributed.collectives import gather_rows
from finetune.errors import TrainingError
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.models.classifier import ImageClassifier, normalise
from finetune.system.hardware import seed_device
from finetune.training.callbacks.weight_averaging import WeightAverage
from finetune.training.mixup import Mixup
from finetune.training.param_groups import get_learning_rates
from finetune.types import PreprocessSpec

_MAX_BUFFERED_BATCHES = 32
"""Batches of predictions that wait on the device."""

_LCG_MULTIPLIER = 6364136223846793005
"""Multiplier of Knuth's generator (MMIX): spreads a small number over 63 bits."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a classifier is trained, as functions.

    Attributes:
        criterion_schedule: Epoch to criterion: logits (B, K) and classes (B,) to the mean loss.
        depth_schedule: Epoch to unfreeze depth.
        make_optimizer: Called once, with every parameter.
        lr_lambda: Optimizer steps that are done to the factor of all learning rates.
        seed: Of dropout; with the epoch and the rank it gives the generator's state.
        mixup: Of training images.
        logit_shift: Added to the logits of validation images, shape (K,), as it will be to those of
            the finished model; None adds nothing.
        model_prior_schedule: Epoch to the class shares that logits assume after it, for its checkpoints;
            None leaves the card as it is.
        averaging_start_step: Steps after which weights begin to be averaged; None measures and keeps the
            weights as they are.
    """

    criterion_schedule: Callable[[int], Callable[[Tensor, Tensor], Tensor]]
    depth_schedule: Callable[[int], int]
    make_optimizer: Callable[[ImageClassifier], Optimizer]
    lr_lambda: Callable[[int], float]
    seed: int
    mixup: Mixup = field(default_factory=Mixup)
    averaging_start_step: int | None = None
    logit_shift: Tensor | None = None
    model_prior_schedule: Callable[[int], Sequence[float]] | None = None


@dataclass(frozen=True, slots=True)
class EpochSums:
    """What a rank has gathered of an epoch.

    Attributes:
        loss_sum: Sum over the batches.
        num_batches: How many.
        learning_rates: Learning rate of each layer group at the last batch; empty before it.
    """

    loss_sum: float = 0.0
    num_batches: int = 0
    learning_rates: Mapping[str, float] = field(default_factory=dict)


class ClassificationModule(LightningModule):
    """Trains an image classifier and measures it on complete predictions.

    Args:
        classifier: The network with its layer groups.
        spec: Preprocessing that the network expects.
        classes: Class names in index order.
        recipe: Loss, schedules and optimizer.
        card: JSON values that go into every checkpoint, so that it can be used alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classifier: ImageClassifier,
        *,
        spec: PreprocessSpec,
        classes: Sequence[str],
        recipe: Recipe,
        card: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.spec = spec
        self.classes = tuple(classes)
        self.recipe = recipe
        self.card = dict(card)
        self._train_counts = get_train_counts(self.card.get("facts", {}), self.classes)
        self._loss_sum: Tensor | None = None
        self._num_batches = 0
        # constants that lie on the device: made anew, each would wait for the step before
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)
        self._learning_rates: Mapping[str, float] = {}
        self._device_predictions: list[tuple[Tensor, Tensor, Tensor]] = []
        self._cpu_predictions: list[tuple[Tensor, Tensor, Tensor]] = []
        start = recipe.averaging_start_step
        self.average = None if start is None else WeightAverage(self, start_step=start)

    def forward(self, images: Tensor, color_matrix: Tensor | None = None) -> Tensor:
        """Return logits (B, K) of uint8 pixels (B, H, W, C) after their color_matrix matrices."""
        pixels = normalise(images, mean=self.mean, std=self.std, color_matrix=color_matrix)
        logits: Tensor = self.classifier(pixels)
        return logits.float()

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's sums."""
        self._loss_sum, self._num_batches, self._learning_rates = None, 0, {}

    def get_epoch_sums(self) -> EpochSums:
        """Return what this rank has gathered of the epoch."""
        loss = 0.0 if self._loss_sum is None else float(self._loss_sum)
        return EpochSums(loss, self._num_batches, dict(self._learning_rates))

    def resume_epoch(self, sums: EpochSums) -> None:
        """Take over what was gathered before the epoch broke off."""
        # the module itself is moved to the device later, by some strategies never
        self._loss_sum = torch.tensor(sums.loss_sum, device=self.trainer.strategy.root_device)
        self._num_batches, self._learning_rates = sums.num_batches, dict(sums.learning_rates)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of (seed, epoch, batch, rank), also in a resumed epoch."""
        key = self.recipe.seed
        for part in (self.current_epoch, batch_idx, self.global_rank):
            key = (key * _LCG_MULTIPLIER + part) % 2**63
        seed_device(self.trainer.strategy.root_device, key)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        loss = self._compute_loss(batch, batch_idx // self.trainer.accumulate_grad_batches)
        if self.trainer.is_last_batch:
            self._learning_rates = get_learning_rates(self.trainer.optimizers[0])
        # summed on the device: reading each value would stop the device at each step
        value = loss.detach()
        self._loss_sum = value if self._loss_sum is None else self._loss_sum + value
        self._num_batches += 1
        return loss

    def _compute_loss(self, batch: Batch, step: int) -> Tensor:
        """Return the mean loss, of mixtures of two images where the recipe mixes."""
        color_matrix, labels = batch.get("color_matrix"), batch["label"]
        mixing, criterion = self.recipe.mixup, self.recipe.criterion_schedule(self.current_epoch)
        if not mixing:
            return criterion(self(batch["image"], color_matrix), labels)
        key = (self.recipe.seed << 32 | self.current_epoch, step)
        return mixing.compute_loss(
            normalise(batch["image"], mean=self.mean, std=self.std, color_matrix=color_matrix),
            labels,
            generator=np.random.Generator(np.random.Philox(key=key)),
            network=lambda pixels: self.classifier(pixels).float(),
            criterion=criterion,
        )

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss over all ranks and the learning rates.

        Raises:
            TrainingError: The loss is no longer a number.
        """
        assert self._loss_sum is not None, "an epoch has at least one batch"
        mean = self._loss_sum / self._num_batches
        mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        if not math.isfinite(float(mean)):
            raise TrainingError(
                f"The training loss is {float(mean)} in epoch {self.current_epoch + 1}: training "
                f"diverged. Lower optim.lr or optim.backbone_lr_scale; the best of the "
                f"earlier epochs is in checkpoints/best.ckpt."
            )
        self.log("train/loss", mean)
        self.log_dict(dict(self._learning_rates))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the probabilities of a batch, by averaged weights where there are some by now."""
        average = None if self.average is None else dict(self.average.tensors)
        images = batch["image"]
        logits: Tensor = functional_call(self, average, (images,)) if average else self(images)
        if (shift := self.recipe.logit_shift) is not None:
            logits = logits + shift.to(logits.device)
        self._device_predictions.append((batch["index"], batch["label"], logits.softmax(dim=1)))
        if (
            len(self._device_predictions) == _MAX_BUFFERED_BATCHES
        ):  # each copy from a GPU waits until it is done
            self._move_predictions_to_cpu()

    def _move_predictions_to_cpu(self) -> None:
        if self._device_predictions:
            parts = zip(*self._device_predictions, strict=True)
            rows, labels, probabilities = (torch.cat(part).cpu() for part in parts)
            self._cpu_predictions.append((rows, labels, probabilities))
            self._device_predictions.clear()

    def on_validation_epoch_end(self) -> None:
        """Log every metric once, from the predictions of all ranks with each image once."""
        self._move_predictions_to_cpu()
        parts = zip(*self._cpu_predictions, strict=True)
        rows, labels, probabilities = (torch.cat(part) for part in parts)
        self._cpu_predictions.clear()
        _, labels, probabilities = gather_rows(rows, labels, probabilities)
        evaluation = evaluate_probabilities(
            probabilities, labels, classes=self.classes, train_counts=self._train_counts
        )
        self.log_dict({f"val/{name}": value for name, value in evaluation.metrics.items()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer with all parameters and its schedule by step."""
        optimizer = self.recipe.make_optimizer(self.classifier)
        scheduler = LambdaLR(optimizer, self.recipe.lr_lambda)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limit the norm of all gradients together.

        Lightning refuses to do so for fused optimizers in every mixed precision, though only fp16
        scales its gradients; there the optimizer is not fused, and they are unscaled by now.
        """
        if not gradient_clip_val:
            return
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, FullyShardedDataParallel):  # a process holds a part of each
            wrapper.clip_grad_norm_(gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, so that the weights can be used without the run's config."""
        checkpoint[CARD_KEY] = self._build_epoch_card()
        if self.average is not None and self.average.count:
            checkpoint[AVERAGE_KEY] = self.average.state_dict()

    def _build_epoch_card(self) -> dict[str, Any]:
        """Return the card with the class shares that the network has been shown by now."""
        priors, prior_at = self.card.get("priors"), self.recipe.model_prior_schedule
        if priors is None or prior_at is None:
            return self.card
        return {**self.card, "priors": {**priors, "model": list(prior_at(self.current_epoch))}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on averaging."""
        if self.average is not None and AVERAGE_KEY in checkpoint:
            self.average.load_state_dict(checkpoint[AVERAGE_KEY])
