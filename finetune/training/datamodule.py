"""Loaders whose order is a function of (seed, epoch) for any number of processes."""

from dataclasses import dataclass
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from finetune.data.dataset import Batch, ImageDataset, create_loader
from finetune.data.samplers.epoch_sampler import DistributedBatchSampler, EpochSampler
from finetune.data.samplers.sampling_weights import SamplingSchedule, count_draws
from finetune.training.callbacks.mid_epoch_resume import count_steps_in_epoch

_MAX_VAL_BATCH_SIZE = 64
"""Images at once in validation, or fewer: it takes far less memory than training."""


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """How images are read.

    Attributes:
        batch_size: Global: over all ranks and accumulated batches, which divide it.
        accumulate_grad_batches: Batches that make one step.
        num_workers: Reading processes of each rank.
        seed: Of the order.
    """

    batch_size: int
    accumulate_grad_batches: int
    num_workers: int
    seed: int


class ImageDataModule(LightningDataModule):
    """Training and validation loaders for one rank.

    Args:
        train_dataset: Training images.
        val_dataset: Validation images.
        sampling_schedule: Epoch to how often each training image is drawn in it.
        loader_options: Batch size and workers.
    """

    def __init__(
        self,
        train_dataset: ImageDataset,
        val_dataset: ImageDataset,
        *,
        sampling_schedule: SamplingSchedule,
        loader_options: LoaderOptions,
    ) -> None:
        super().__init__()
        self.train_dataset = train_dataset
        self.val_dataset = val_dataset
        self.sampling_schedule = sampling_schedule
        self.loader_options = loader_options
        self._num_samples = count_draws(sampling_schedule(0), len(train_dataset))

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of an epoch."""
        return self._num_samples // self.loader_options.batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's slice of whole global batches."""
        trainer = self._get_trainer()
        sampler = EpochSampler(
            self.sampling_schedule,
            num_images=len(self.train_dataset),
            batch_size=self.loader_options.batch_size,
            seed=self.loader_options.seed,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
        )
        # Lightning builds the iterator before it calls set_epoch, so that the first epoch after a
        # resume would repeat the order of epoch 0: Lightning-AI/pytorch-lightning#21938
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        local_step = self.loader_options.batch_size // trainer.world_size
        sampler.skip(count_steps_in_epoch(trainer) * local_step)
        return self._build_loader(
            self.train_dataset,
            sampler=sampler,
            batch_size=local_step // self.loader_options.accumulate_grad_batches,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's share of the validation images, in the same batches for any number.

        Some images may come on several ranks; they are counted once.
        """
        trainer = self._get_trainer()
        batches = DistributedBatchSampler(
            len(self.val_dataset),
            batch_size=min(
                _MAX_VAL_BATCH_SIZE,
                self.loader_options.batch_size // self.loader_options.accumulate_grad_batches,
            ),
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
        )
        return self._build_loader(self.val_dataset, batch_sampler=batches)

    def _get_trainer(self) -> Trainer:
        assert self.trainer is not None, "loaders are made by a trainer"
        return self.trainer

    def _build_loader(self, dataset: ImageDataset, **sampler_kwargs: Any) -> DataLoader[Batch]:
        return create_loader(
            dataset,
            num_workers=self.loader_options.num_workers,
            pin_memory=self._get_trainer().strategy.root_device.type == "cuda",
            **sampler_kwargs,
        )
