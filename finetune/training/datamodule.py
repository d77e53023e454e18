"""Data module whose order is a function of (seed, epoch) for any number of processes."""

from dataclasses import dataclass
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from finetune.data.dataset import Batch, ImageDataset, JoinedDataset, create_loader
from finetune.data.samplers.epoch_sampler import DistributedBatchSampler, EpochSampler
from finetune.data.samplers.sampling_weights import SamplingSchedule, count_draws
from finetune.training.callbacks.mid_epoch_resume import count_steps_in_epoch

_MAX_VAL_BATCH_SIZE = 64
"""Maximum images of a validation batch, which takes far less memory than a training batch."""


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """Settings of the data loaders.

    Attributes:
        batch_size: Images per optimizer step, over all ranks and accumulated batches; a multiple of
            their product.
        accumulate_grad_batches: Batches per optimizer step.
        num_workers: Worker processes of each rank.
        seed: Seed of the order.
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
        sampling_schedule: Function from epoch to how often each training image is drawn in it.
        loader_options: Settings of the data loaders.
        train_eval_dataset: Sample of the training images that is measured as validation images are,
            after these; None measures none.
    """

    def __init__(
        self,
        train_dataset: ImageDataset,
        val_dataset: ImageDataset,
        *,
        sampling_schedule: SamplingSchedule,
        loader_options: LoaderOptions,
        train_eval_dataset: ImageDataset | None = None,
    ) -> None:
        super().__init__()
        self.train_dataset = train_dataset
        self.val_dataset = val_dataset
        self.sampling_schedule = sampling_schedule
        self.loader_options = loader_options
        self.train_eval_dataset = train_eval_dataset
        self._num_samples = count_draws(sampling_schedule(0), len(train_dataset))

    def replace_sources(self, other: "ImageDataModule") -> "ImageDataModule":
        """Return this data module with the image sources of another one, which may be cached.

        A training transform that is not random belongs to its source and comes with it.
        """
        train = other.train_dataset
        transform = self.train_dataset.transform if train.transform.is_random else train.transform
        return ImageDataModule(
            ImageDataset(train.source, train.labels, transform),
            other.val_dataset,
            sampling_schedule=self.sampling_schedule,
            loader_options=self.loader_options,
            train_eval_dataset=other.train_eval_dataset,
        )

    def replace_options(self, loader_options: LoaderOptions) -> "ImageDataModule":
        """Return this data module with other settings of the loaders."""
        return ImageDataModule(
            self.train_dataset,
            self.val_dataset,
            sampling_schedule=self.sampling_schedule,
            loader_options=loader_options,
            train_eval_dataset=self.train_eval_dataset,
        )

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps of an epoch."""
        return self._num_samples // self.loader_options.batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of this rank's slice of complete global batches."""
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
        images_per_rank = self.loader_options.batch_size // trainer.world_size
        sampler.skip(count_steps_in_epoch(trainer) * images_per_rank)
        return self._build_loader(
            self.train_dataset,
            sampler=sampler,
            batch_size=images_per_rank // self.loader_options.accumulate_grad_batches,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of this rank's validation batches, the same for any number of ranks.

        Batches of the training images to measure follow in rows after those of the validation
        images; a loader of their own would start as many worker processes again. Some images may be
        read by several ranks; they are counted once.
        """
        trainer, sample = self._get_trainer(), self.train_eval_dataset
        dataset = self.val_dataset if sample is None else JoinedDataset(self.val_dataset, sample)
        batches = DistributedBatchSampler(
            len(dataset),
            batch_size=min(
                _MAX_VAL_BATCH_SIZE,
                self.loader_options.batch_size // self.loader_options.accumulate_grad_batches,
            ),
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            boundary=len(self.val_dataset),
        )
        return self._build_loader(dataset, batch_sampler=batches)

    def _get_trainer(self) -> Trainer:
        assert self.trainer is not None, "loaders are created by a trainer"
        return self.trainer

    def _build_loader(
        self, dataset: ImageDataset | JoinedDataset, **sampler_kwargs: Any
    ) -> DataLoader[Batch]:
        return create_loader(
            dataset,
            num_workers=self.loader_options.num_workers,
            pin_memory=self._get_trainer().strategy.root_device.type == "cuda",
            **sampler_kwargs,
        )
