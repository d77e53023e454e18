"""Loaders whose order is a function of (seed, epoch) for any number of processes."""

from dataclasses import dataclass
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from finetune.data.dataset import Batch, ImageDataset, create_loader
from finetune.data.samplers.epoch_sampler import EpochSampler, WholeBatches
from finetune.data.samplers.sampling_weights import SamplingAt, num_drawn
from finetune.training.callbacks.mid_epoch_resume import steps_of_epoch

_VAL_BATCH = 64
"""Images at once in validation, or fewer: it takes far less memory than training."""


@dataclass(frozen=True, slots=True)
class Loading:
    """How images are read.

    Attributes:
        batch_size: Global: over all ranks and accumulated batches, which divide it.
        accumulate: Batches that make one step.
        num_workers: Reading processes of each rank.
        seed: Of the order.
    """

    batch_size: int
    accumulate: int
    num_workers: int
    seed: int


class ImageDataModule(LightningDataModule):
    """Training and validation loaders for one rank.

    Args:
        train: Training images.
        val: Validation images.
        sampling: Epoch to how often each training image is drawn in it.
        loading: Batch size and workers.
    """

    def __init__(
        self, train: ImageDataset, val: ImageDataset, *, sampling: SamplingAt, loading: Loading
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.sampling = sampling
        self.loading = loading
        self._num_drawn = num_drawn(sampling(0), len(train))

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of an epoch."""
        return self._num_drawn // self.loading.batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's slice of whole global batches."""
        trainer = self._trainer()
        sampler = EpochSampler(
            self.sampling,
            num_images=len(self.train),
            batch_size=self.loading.batch_size,
            seed=self.loading.seed,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
        )
        # Lightning builds the iterator before it calls set_epoch, so that the first epoch after a
        # resume would repeat the order of epoch 0: Lightning-AI/pytorch-lightning#21938
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        local_step = self.loading.batch_size // trainer.world_size
        sampler.skip(steps_of_epoch(trainer) * local_step)
        return self._loader(
            self.train, sampler=sampler, batch_size=local_step // self.loading.accumulate
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's share of the validation images, in the same batches for any number.

        Some images may come on several ranks; they are counted once.
        """
        trainer = self._trainer()
        batches = WholeBatches(
            len(self.val),
            batch_size=min(_VAL_BATCH, self.loading.batch_size // self.loading.accumulate),
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
        )
        return self._loader(self.val, batches=batches)

    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "loaders are made by a trainer"
        return self.trainer

    def _loader(self, dataset: ImageDataset, **order: Any) -> DataLoader[Batch]:
        return create_loader(
            dataset,
            num_workers=self.loading.num_workers,
            pin_memory=self._trainer().strategy.root_device.type == "cuda",
            **order,
        )
