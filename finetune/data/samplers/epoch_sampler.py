"""Which images make up an epoch: a pure function of (seed, epoch), sliced over the ranks."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, Sampler

from finetune.data.samplers.sampling_weights import (
    GroupDraws,
    Sampling,
    SamplingSchedule,
    check_sampling,
    count_draws,
)
from finetune.types import Draw


def compute_effective_batch_size(batch_size: int, *, num_images: int, num_shards: int) -> int:
    """Return the global batch, shrunk to the images there are, as a multiple of ``num_shards``.

    Args:
        batch_size: What was asked for.
        num_images: That an epoch draws.
        num_shards: Processes times accumulated batches, which divide a batch.
    """
    return min(batch_size, max(1, num_images // num_shards) * num_shards)


class EpochSampler(DistributedSampler[Draw]):
    """Draws whole global batches, the same for any number of ranks and of accumulated batches.

    The draw of an epoch is a pure function of (seed, epoch); a rank takes its strided slice, so
    that the ranks' batches together are the global batch. Being a ``DistributedSampler`` keeps
    Lightning from replacing it and makes Lightning call ``set_epoch``.

    Args:
        sampling: How often each image is drawn, or a function of the epoch that says so: weights
            (N,), ``GroupDraws``, or None for each image once. Every epoch must draw equally many.
        num_images: N.
        batch_size: Global batch; must be a multiple of ``num_replicas`` and at most what an epoch
            draws.
        seed: Of the draw.
        num_replicas: Ranks.
        rank: This one.
    """

    def __init__(
        self,
        sampling: Sampling | SamplingSchedule,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self.sampling_schedule: SamplingSchedule = (
            sampling if callable(sampling) else lambda _: sampling
        )
        first = self.sampling_schedule(0)
        check_sampling(first, num_images)
        drawn = count_draws(first, num_images)
        if batch_size % num_replicas or not 0 < batch_size <= drawn:
            raise ValueError(
                f"a global batch of {batch_size} must divide among {num_replicas} ranks and be at "
                f"most the {drawn} images of an epoch"
            )
        super().__init__(
            range(num_images),  # type: ignore[arg-type]
            num_replicas=num_replicas,
            rank=rank,
            seed=seed,
        )
        self.num_images = num_images
        self.num_draws = drawn
        self.total_size = drawn // batch_size * batch_size
        self.num_samples = self.total_size // num_replicas
        self._skip_offset = (0, 0)

    def skip(self, num_draws: int) -> None:
        """Leave out this rank's first draws of this epoch: what it has behind it, broken off."""
        self._skip_offset = self.epoch, num_draws

    def __iter__(self) -> Iterator[Draw]:
        """Yield this rank's draws of whole batches; the rest is left out."""
        epoch, draws = self._skip_offset
        first = self.rank + (draws * self.num_replicas if epoch == self.epoch else 0)
        rows, repeats = (part[first :: self.num_replicas] for part in self._draw_rows())
        for row, repeat in zip(rows, repeats, strict=True):
            yield Draw(int(row), self.epoch, int(repeat))

    def _draw_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of an epoch, and how often each was drawn before in it."""
        generator = np.random.default_rng([self.seed, self.epoch])
        sampling = self.sampling_schedule(self.epoch)
        check_sampling(sampling, self.num_images)
        if count_draws(sampling, self.num_images) != self.num_draws:
            raise ValueError(
                f"epoch {self.epoch} (counted from 0) draws "
                f"{count_draws(sampling, self.num_images)} images, the first one {self.num_draws}"
            )
        if sampling is None:
            rows = generator.permutation(self.num_images)[: self.total_size]
            return rows, np.zeros_like(rows)
        if isinstance(sampling, GroupDraws):
            rows = sampling.draw_rows(generator)[: self.total_size]
        else:
            chances = sampling / sampling.sum()
            rows = generator.choice(self.num_images, size=self.total_size, p=chances)
        return rows, _count_repeats(rows)


def _count_repeats(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each row was drawn before."""
    # stable: among the draws of one row the first stays the first
    by_row = np.argsort(rows, kind="stable")
    _, first, counts = np.unique(rows[by_row], return_index=True, return_counts=True)
    repeats = np.empty_like(rows)
    repeats[by_row] = np.arange(len(rows)) - np.repeat(first, counts)
    return repeats


class DistributedBatchSampler(Sampler[list[int]]):
    """Deals batches of consecutive rows out to the ranks, the same batches for any number of them.

    What a network computes for an image depends in the last bits on how many others are in its
    batch; with the same batches the predictions are the same. Every rank gets equally many, or the
    others would wait for ever: some get a batch again that another one has, also where there are
    fewer batches than ranks. Rows that come twice are counted once by whoever gathers them.

    Args:
        num_images: Rows.
        batch_size: Of a batch; the last one may be smaller.
        num_replicas: Ranks.
        rank: This one.
    """

    def __init__(
        self, num_images: int, *, batch_size: int, num_replicas: int = 1, rank: int = 0
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.num_replicas = num_replicas
        self.rank = rank
        self.num_batches = -(-num_images // batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches."""
        for turn in range(len(self)):
            first = (turn * self.num_replicas + self.rank) % self.num_batches * self.batch_size
            yield list(range(first, min(first + self.batch_size, self.num_images)))

    def __len__(self) -> int:
        """Return the batches of a rank."""
        return -(-self.num_batches // self.num_replicas)
