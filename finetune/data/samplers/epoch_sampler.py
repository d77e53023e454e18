"""Distributed samplers whose epochs are a pure function of (seed, epoch)."""

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
    """Return the global batch size, at most ``num_images`` and a multiple of ``num_shards``.

    Args:
        batch_size: Requested global batch size.
        num_images: Number of images that an epoch draws.
        num_shards: World size times accumulated micro-batches, which divide a global batch.
    """
    return min(batch_size, max(1, num_images // num_shards) * num_shards)


class EpochSampler(DistributedSampler[Draw]):
    """Sampler of complete global batches, the same for any number of ranks and micro-batches.

    The draws of an epoch are a pure function of (seed, epoch); each rank takes a strided slice, so
    that the ranks' batches together are the global batch. Because this is a ``DistributedSampler``,
    Lightning does not replace it, and calls ``set_epoch``.

    Args:
        sampling: Weights (N,), ``GroupDraws``, or None for each image once; or a function from the
            epoch to one of these. All epochs must draw the same number of images.
        num_images: Number of images N.
        batch_size: Global batch size; a multiple of ``num_replicas``, and at most the number of
            draws of an epoch.
        seed: Random seed of the draws.
        num_replicas: Number of ranks.
        rank: Rank of this process.

    Raises:
        ValueError: The sampling is invalid, or the batch size does not fit.
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
        num_draws = count_draws(first, num_images)
        if batch_size % num_replicas or not 0 < batch_size <= num_draws:
            raise ValueError(
                f"global batch size {batch_size} must be a multiple of {num_replicas} ranks and at "
                f"most the {num_draws} images of an epoch"
            )
        super().__init__(
            range(num_images),  # type: ignore[arg-type]
            num_replicas=num_replicas,
            rank=rank,
            seed=seed,
        )
        self.num_images = num_images
        self.num_draws = num_draws
        self.total_size = num_draws // batch_size * batch_size
        self.num_samples = self.total_size // num_replicas
        self._skip_offset = (0, 0)

    def skip(self, num_draws: int) -> None:
        """Skip this rank's first ``num_draws`` draws of the current epoch, to resume within it."""
        self._skip_offset = self.epoch, num_draws

    def __iter__(self) -> Iterator[Draw]:
        """Yield this rank's draws of complete batches; the remaining draws are dropped."""
        epoch, draws = self._skip_offset
        first = self.rank + (draws * self.num_replicas if epoch == self.epoch else 0)
        rows, repeats = (array[first :: self.num_replicas] for array in self._draw_rows())
        for row, repeat in zip(rows, repeats, strict=True):
            yield Draw(int(row), self.epoch, int(repeat))

    def _draw_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of an epoch, and the number of earlier draws of each, int64."""
        generator = np.random.default_rng([self.seed, self.epoch])
        sampling = self.sampling_schedule(self.epoch)
        check_sampling(sampling, self.num_images)
        num_draws = count_draws(sampling, self.num_images)
        if num_draws != self.num_draws:
            raise ValueError(
                f"epoch {self.epoch} (counted from 0) draws {num_draws} images, but epoch 0 draws "
                f"{self.num_draws}"
            )
        if sampling is None:
            rows = generator.permutation(self.num_images)[: self.total_size]
            return rows, np.zeros_like(rows)
        if isinstance(sampling, GroupDraws):
            rows = sampling.draw_rows(generator)[: self.total_size]
        else:
            probabilities = sampling / sampling.sum()
            rows = generator.choice(self.num_images, size=self.total_size, p=probabilities)
        return rows, _count_repeats(rows)


def _count_repeats(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of earlier draws of each row."""
    # stable: the draws of one row keep their order
    by_row = np.argsort(rows, kind="stable")
    _, first, counts = np.unique(rows[by_row], return_index=True, return_counts=True)
    repeats = np.empty_like(rows)
    repeats[by_row] = np.arange(len(rows)) - np.repeat(first, counts)
    return repeats


class DistributedBatchSampler(Sampler[list[int]]):
    """Sampler that distributes batches of consecutive rows, the same for any number of ranks.

    The last bits of a network's output for an image depend on the size of its batch; with the same
    batches the predictions are bit-identical. All ranks get the same number of batches, otherwise
    collectives would hang: batches are repeated on some ranks if they do not divide evenly. The
    caller that gathers the results must count repeated rows once.

    Args:
        num_images: Number of rows.
        batch_size: Rows per batch; the last batch of each part may be smaller.
        num_replicas: Number of ranks.
        rank: Rank of this process.
        boundary: Row at which a second part begins, whose images are in no batch with those before;
            None for one part.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        boundary: int | None = None,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.num_replicas = num_replicas
        self.rank = rank
        self.boundary = num_images if boundary is None else boundary
        self._num_first = -(-self.boundary // batch_size)
        self.num_batches = self._num_first - (-(num_images - self.boundary) // batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches."""
        for step in range(len(self)):
            number = (step * self.num_replicas + self.rank) % self.num_batches
            is_second = number >= self._num_first
            first = self.boundary if is_second else 0
            first += (number - self._num_first * is_second) * self.batch_size
            end = self.num_images if is_second else self.boundary
            yield list(range(first, min(first + self.batch_size, end)))

    def __len__(self) -> int:
        """Return the number of batches of a rank."""
        return -(-self.num_batches // self.num_replicas)
