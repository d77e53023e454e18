"""LightningModule with exact validation metrics and an optimizer over all layer groups."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.func import functional_call
from torch.optim import Optimizer

from finetune.bundle.checkpoint_file import AVERAGE_KEY
from finetune.bundle.model_card import CARD_KEY, ModelCard, get_train_counts
from finetune.data.dataset import Batch
from finetune.evaluation.validation import compute_outputs, compute_validation_metrics
from finetune.models.classifier import ImageClassifier, normalise
from finetune.system.hardware import seed_device
from finetune.training.curves.divergence import DivergenceCheck, StepInfo
from finetune.training.curves.epoch_statistics import EpochStatistics
from finetune.training.curves.epoch_sums import EpochSums
from finetune.training.curves.validation_outputs import ValidationOutputs
from finetune.training.learning_recipe import Recipe
from finetune.training.optimization.param_groups import get_learning_rates
from finetune.training.optimization.weight_average import WeightAverage
from finetune.training.schedules.factor_scheduler import FactorScheduler
from finetune.training.schedules.plateau import PlateauFactor
from finetune.types import PreprocessSpec

_LCG_MULTIPLIER = 6364136223846793005
"""Multiplier of Knuth's congruential generator (MMIX); spreads a small number over 63 bits."""


class ClassificationModule(LightningModule):
    """Image classifier with its training step, and validation on the predictions of all ranks.

    Args:
        classifier: Network with its layer groups.
        spec: Preprocessing that the network expects.
        classes: Class names in index order.
        recipe: Loss, schedules and optimizer.
        card: JSON values stored in every checkpoint, so that it can be used without the run.
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
        # constants on the device: creating them in each step would wait for the previous step
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)
        self._learning_rates: Mapping[str, float] = {}
        self._outputs = ValidationOutputs()
        self._logit_shift: Tensor | None = None
        self._statistics = EpochStatistics(classifier)
        self.divergence: DivergenceCheck | None = None
        start = recipe.averaging_start_step
        self.average = None if start is None else WeightAverage(self, start_step=start)

    def forward(self, images: Tensor, color_matrix: Tensor | None = None) -> Tensor:
        """Compute logits (B, K) of uint8 pixels (B, H, W, C), after the color matrix if any."""
        pixels = normalise(images, mean=self.mean, std=self.std, color_matrix=color_matrix)
        logits: Tensor = self.classifier(pixels)
        return logits.float()

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's sums."""
        self._loss_sum, self._num_batches, self._learning_rates = None, 0, {}
        wrapper = self.trainer.strategy.model
        self._statistics.start_epoch(is_sharded=isinstance(wrapper, FullyShardedDataParallel))

    def get_epoch_sums(self) -> EpochSums:
        """Return the sums of the unfinished epoch on this rank."""
        loss = 0.0 if self._loss_sum is None else float(self._loss_sum)
        norm_sums, counts = self._statistics.groups.get_sums()
        return EpochSums(loss, self._num_batches, dict(self._learning_rates), norm_sums, counts)

    def resume_epoch(self, sums: EpochSums) -> None:
        """Restore the sums of an epoch that is resumed midway."""
        # the strategy moves the module to the device later, or never
        self._loss_sum = torch.tensor(sums.loss_sum, device=self.trainer.strategy.root_device)
        self._num_batches, self._learning_rates = sums.num_batches, dict(sums.learning_rates)
        self._statistics.groups.resume_epoch(sums.grad_norm_sums, sums.grad_norm_counts)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout as a function of (seed, epoch, batch, rank), also in a resumed epoch."""
        key = self.recipe.seed
        for value in (self.current_epoch, batch_idx, self.global_rank):
            key = (key * _LCG_MULTIPLIER + value) % 2**63
        seed_device(self.trainer.strategy.root_device, key)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the mean loss of a batch."""
        loss = self.compute_loss(batch, batch_idx // self.trainer.accumulate_grad_batches)
        if self.trainer.is_last_batch:
            self._learning_rates = self._get_learning_rates()
        # summed on the device: reading the value would synchronize with it in each step
        loss_value = loss.detach()
        self._loss_sum = loss_value if self._loss_sum is None else self._loss_sum + loss_value
        self._num_batches += 1
        self._statistics.clock.add(len(batch["label"]) * self.trainer.world_size)
        return loss

    def _get_learning_rates(self) -> dict[str, float]:
        """Return the learning rate of each layer group by ``lr/<layer group>``; 0 if frozen."""
        trained = {group.name for group in self.classifier.groups[: self.classifier.depth]}
        rates = get_learning_rates(self.trainer.optimizers[0])
        return {name: rates[name] if name[3:] in trained else 0.0 for name in rates}

    def compute_loss(self, batch: Batch, step: int) -> Tensor:
        """Compute the mean loss of a batch and the penalty of the weights.

        Args:
            batch: Training images on the module's device.
            step: Optimizer step within the epoch, which determines the mixture.
        """
        loss = self._compute_criterion(batch, step)
        penalty = self.recipe.penalty
        return loss if penalty is None else loss + penalty(self.classifier)

    def _compute_criterion(self, batch: Batch, step: int) -> Tensor:
        """Compute the mean loss of a batch, with mixup or CutMix if the recipe enables them."""
        color_matrix, labels = batch.get("color_matrix"), batch["label"]
        mixup, criterion = self.recipe.mixup, self.recipe.criterion_schedule(self.current_epoch)
        if not mixup:
            return criterion(self(batch["image"], color_matrix), labels)
        key = (self.recipe.seed << 32 | self.current_epoch, step)
        return mixup.compute_loss(
            normalise(batch["image"], mean=self.mean, std=self.std, color_matrix=color_matrix),
            labels,
            generator=np.random.Generator(np.random.Philox(key=key)),
            network=lambda pixels: self.classifier(pixels).float(),
            criterion=criterion,
        )

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss over all ranks and the learning rates; look for a plateau.

        Raises:
            DivergenceError: The mean loss is NaN or infinite.
        """
        assert self._loss_sum is not None, "an epoch has at least one batch"
        mean = self._loss_sum / self._num_batches
        mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        if not math.isfinite(float(mean)):
            raise self._build_step_info().build_error(float(mean), math.nan)
        self.log("train/loss", mean)
        self.log_dict(dict(self._learning_rates))
        self.log_dict(self._statistics.collect(self.trainer.callback_metrics))
        if self.recipe.plateau is not None:
            # the same on all ranks, which have gathered the predictions, and saved with this epoch
            scheduler = self.lr_schedulers()
            assert isinstance(scheduler, FactorScheduler)
            scheduler.update_plateau(
                float(self.trainer.callback_metrics[self.recipe.plateau.monitor])
            )

    def on_validation_epoch_start(self) -> None:
        """Compute the logit adjustment of the model that the checkpoint of this epoch will hold."""
        card = self.recipe.build_epoch_card(self.card, self.current_epoch)
        shift = ModelCard.from_json(card).shift
        self._logit_shift = None if shift is None else torch.tensor(shift)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Store the probabilities of a batch, computed with averaged weights if there are any."""
        average = None if self.average is None else dict(self.average.tensors)
        images = batch["image"]
        logits: Tensor = functional_call(self, average, (images,)) if average else self(images)
        if self._logit_shift is not None:
            logits = logits + self._logit_shift.to(logits.device)
        self._outputs.add(batch["index"], batch["label"], compute_outputs(logits, batch["label"]))

    def on_validation_epoch_end(self) -> None:
        """Gather the outputs of all ranks, with each image once, and log every metric.

        Those of training images, in the rows after the validation images, as ``train_eval/...``.

        Raises:
            DivergenceError: An output is NaN or infinite on any rank; raised on all of them.
        """
        rows, labels, outputs = self._outputs.gather()
        if num_bad := int((~outputs.isfinite()).any(dim=1).sum()):
            raise self._build_step_info().build_output_error(num_bad, len(outputs))
        is_val = rows < len(self.trainer.datamodule.val_dataset)  # type: ignore[attr-defined]
        for name, selected in (("val", is_val), ("train_eval", ~is_val)):
            if selected.any():
                metrics = compute_validation_metrics(
                    outputs[selected],
                    labels[selected],
                    classes=self.classes,
                    train_counts=self._train_counts,
                    logit_shift=self._logit_shift,
                )
                self.log_dict({f"{name}/{key}": value for key, value in metrics.items()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer over all parameters, and its learning-rate schedule per step."""
        optimizer = self.recipe.make_optimizer(self.classifier)
        settings = self.recipe.plateau
        scheduler = FactorScheduler(
            optimizer,
            self.recipe.lr_lambda,
            plateau=None if settings is None else PlateauFactor(settings),
            momentum_lambda=self.recipe.momentum_lambda,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_fit_start(self) -> None:
        """Move a restored average to the device of the module."""
        if self.average is not None:
            self.average.move_to_module()
        self.divergence = DivergenceCheck(
            checks_gradients=self.trainer.precision != "16-mixed",
            is_agreed=self.trainer.world_size > 1,
            is_deferred=self.trainer.strategy.root_device.type != "cpu",
        )

    def on_train_start(self) -> None:
        """Start the clock of an epoch resumed midway, for which Lightning skips its hook."""
        self._statistics.clock.start()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Update the weights, then their average, so that any checkpoint holds both.

        Raises:
            DivergenceError: After the last step of an epoch a weight is NaN or infinite.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.trainer.is_last_batch and self.divergence is not None:
            self.divergence.wait()
            if (damaged := self._statistics.end_steps()) is not None:
                raise self._build_step_info().build_weight_error(damaged)
        if self.average is not None:
            self.average.update(self.trainer.global_step + 1)  # Lightning counts the step later

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Check the loss and the gradients of a step, and clip the norm of all of them together.

        Lightning refuses to clip with a fused optimizer in every mixed precision, although only
        fp16 scales its gradients. With fp16 the optimizer here is not fused, and the gradients are
        unscaled before this hook.

        Raises:
            DivergenceError: The loss or a gradient is NaN or infinite.
        """
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, FullyShardedDataParallel):  # each rank holds a shard of each
            norm = wrapper.clip_grad_norm_(gradient_clip_val or math.inf)
        else:
            norm = self._statistics.groups.add_gradients()
            if gradient_clip_val:
                torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)
        assert self._loss_sum is not None, "the loss of the step has been added"
        assert self.divergence is not None, "a fit has started"
        self.divergence.check(self._build_step_info(), self._loss_sum, norm)

    def _build_step_info(self) -> StepInfo:
        """Return the step whose loss was added last."""
        accumulated = self.trainer.accumulate_grad_batches
        return StepInfo(
            epoch=self.current_epoch + 1,
            step=self._num_batches // accumulated,
            steps_per_epoch=int(self.trainer.num_training_batches) // accumulated,
            is_first=self.trainer.global_step == 0,
            learning_rates={k: rate for k, rate in self._get_learning_rates().items() if rate},
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, with which the weights can be used without the run, and the average."""
        checkpoint[CARD_KEY] = self.recipe.build_epoch_card(self.card, self.current_epoch)
        if self.average is not None and self.average.count:
            checkpoint[AVERAGE_KEY] = self.average.state_dict()
        self._statistics.groups.save_start(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the average of the weights, and those at the start of an unfinished epoch."""
        self._statistics.groups.load_start(checkpoint)
        if self.average is not None and AVERAGE_KEY in checkpoint:
            self.average.load_state_dict(checkpoint[AVERAGE_KEY])
