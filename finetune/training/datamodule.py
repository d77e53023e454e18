"""Loaders whose order is a function of (seed, epoch) for any number of processes."""

from dataclasses import dataclass
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, DistributedSampler

from finetune.data.dataset import Batch, ImageDataset, create_loader
from finetune.data.sampler import EpochSampler, Weights


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
        weights: Chance of each training image to be drawn, shape (N,); None draws each once.
        loading: Batch size and workers.
    """

    def __init__(
        self, train: ImageDataset, val: ImageDataset, *, weights: Weights | None, loading: Loading
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.weights = weights
        self.loading = loading

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's slice of whole global batches."""
        trainer = self._trainer()
        sampler = EpochSampler(
            self.weights,
            num_images=len(self.train),
            batch_size=self.loading.batch_size,
            seed=self.loading.seed,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
        )
        # Lightning builds the iterator before it calls set_epoch, so that the first epoch after a
        # resume would repeat the order of epoch 0: Lightning-AI/pytorch-lightning#21938
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self._loader(self.train, self._local_batch_size(), sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's slice of the validation images, in order.

        The sampler repeats images so that every rank has equally many; they are counted once.
        """
        trainer = self._trainer()
        sampler: DistributedSampler[int] = DistributedSampler(
            range(len(self.val)),  # type: ignore[arg-type]
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            shuffle=False,
        )
        return self._loader(self.val, self._local_batch_size(), sampler)

    def _local_batch_size(self) -> int:
        """Return the images that this rank holds at once."""
        return self.loading.batch_size // (self._trainer().world_size * self.loading.accumulate)

    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "loaders are made by a trainer"
        return self.trainer

    def _loader(
        self, dataset: ImageDataset, batch_size: int, sampler: DistributedSampler[Any]
    ) -> DataLoader[Batch]:
        return create_loader(
            dataset,
            batch_size=batch_size,
            num_workers=self.loading.num_workers,
            sampler=sampler,
            pin_memory=self._trainer().strategy.root_device.type == "cuda",
        )
