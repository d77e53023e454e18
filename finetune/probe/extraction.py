"""Features of a run's images: read where they are known, else asked for, by all ranks together."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.cache.array_store import NOT_STORED
from finetune.data.cache.eviction import evict_to_fit
from finetune.data.cache.file_stamp import read_file_stamps
from finetune.data.dataset import Batch, ImageDataset, create_loader, translate_worker_errors
from finetune.data.images.source import FileSource
from finetune.data.samplers.epoch_sampler import DistributedBatchSampler
from finetune.data.transforms.eval_transform import EvalTransform, MultiCropTransform
from finetune.distributed.collectives import gather_rows
from finetune.distributed.rendezvous import Rendezvous, sync_stop_request
from finetune.errors import StorageError, TrainingError
from finetune.models.head import compute_backbone_digest
from finetune.probe.extractor import ActivationLayout, FeatureExtractor
from finetune.probe.feature_store import (
    FeatureStore,
    StoredFeatures,
    ViewSpec,
    extract_features,
    to_store_entries,
)
from finetune.system.hardware import (
    autocast,
    explain_out_of_memory,
    is_out_of_memory,
    release_memory,
)
from finetune.types import PreprocessSpec, Reporter

_EVAL_VIEW = ViewSpec()
_BATCH_SIZE = 32
_MAX_BATCHES_PER_WRITE = 16
_MAX_BYTES_PER_WRITE = 2**26
"""Between two writes, of every rank and of all together: whichever is less, but one batch."""


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """How features are made, and where they are kept.

    Attributes:
        model_args_json: How it is built, where its weights do not tell.
        spec: What it expects.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        root: Folder of all stores.
        owner: The data set, by its folder.
        limit_bytes: Of all stores together.
        num_workers: Reading processes of each rank.
        max_pixels: Larger images are refused.
    """

    model_args_json: str
    spec: PreprocessSpec
    precision: str
    root: Path
    owner: str
    limit_bytes: int
    num_workers: int
    max_pixels: int


class CachedFeatureExtractor:
    """What a backbone says of images.

    Args:
        extractor: Of a network in eval mode, on the device; the same on all ranks.
        plan: Ways and places.
        device: Of this rank.
        met: The ranks, in a process group; None for one alone.
        reporter: Told of the progress.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        plan: ExtractionPlan,
        *,
        device: torch.device,
        rendezvous: Rendezvous | None,
        reporter: Reporter,
    ) -> None:
        self.extractor = extractor
        self.plan = plan
        self.device = device
        self.reporter = reporter
        self.num_computed = 0
        self._batch_size = _BATCH_SIZE
        self._rank = 0 if rendezvous is None else rendezvous.launch.rank
        self._world_size = 1 if rendezvous is None else rendezvous.launch.world_size
        self._digest = self._compute_digest() if self._rank == 0 else ""
        self.activation_layout = self._compute_activation_layout()
        self._item_bytes = [4 * extractor.head.in_features]
        if self.activation_layout is not None:
            self._item_bytes.append(4 * self.activation_layout.shape.numel())

    def extract(
        self, paths: Sequence[Path], views: ViewSpec = _EVAL_VIEW
    ) -> list[list[StoredFeatures]]:
        """Return for each answer the views of images, each (N, D), the first as evaluation sees it.

        All ranks call it, and share what is not known yet; the others get empty lists.

        Raises:
            DataError: A file no longer reads as it did before.
            StorageError: The disk is full or fails.
            StopRequest: A rank was asked to stop; what was computed is kept.
            TrainingError: The backbone does not answer in numbers, or needs more memory than there
                is.
        """
        while True:
            try:
                return self._extract_once(paths, views)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._batch_size == 1 or self._world_size > 1:  # the others cannot know of it
                    raise TrainingError(
                        f"{explain_out_of_memory(error)} The frozen backbone does not take even "
                        f"{self._batch_size} image(s) at once. Take a smaller --image-size, or "
                        f"probe.enabled=off."
                    ) from None
            # outside of the handler, which keeps the tensors of the failed batch
            release_memory()
            self._batch_size //= 2

    def _extract_once(self, paths: Sequence[Path], views: ViewSpec) -> list[list[StoredFeatures]]:
        files = read_file_stamps(paths)
        with ExitStack() as filling:
            by_answer = [self._open_stores(name, views) for name in self.extractor.output_names]
            stores = [store for of_views in by_answer for store in of_views]
            for store in stores:
                filling.enter_context(store.lock_for_filling(self.reporter))
                store.reset_if_mostly_stale()
            # (store, file)
            missing = np.array([store.find(files)[:, 0] == NOT_STORED.start for store in stores])
            unknown: list[Any] = [missing.any(axis=0) if stores else None]
            if self._world_size > 1:
                dist.broadcast_object_list(unknown, src=0)
            rows = np.flatnonzero(unknown[0])
            self._evict_to_fit(missing.reshape(len(by_answer), -1).sum(axis=1))
            for first, found in self._compute_missing([paths[row] for row in rows.tolist()], views):
                some = rows[first : first + len(found[0])]
                of_stores = [one for answer in found for one in answer.unbind(dim=1)]
                for store, lacks, answer in zip(stores, missing, of_stores, strict=False):
                    fresh = lacks[some]
                    chosen = [files[row] for row in some[fresh].tolist()]
                    for _ in store.append(to_store_entries(chosen, answer.numpy()[fresh])):
                        pass
            return [
                [StoredFeatures(store, store.find(files)) for store in of_views]
                for of_views in by_answer
            ]

    def _compute_missing(
        self, paths: Sequence[Path], views: ViewSpec
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield the number of the first image of a stretch and each answer (n, V, D) about it."""
        if not paths:
            return
        loader = self._create_loader(paths, views)
        self.reporter.start("asking the backbone", len(paths))
        kept: list[list[Tensor]] = []
        turns = self._compute_batches_per_write(views)
        done = 0
        try:
            with translate_worker_errors():
                for turn, found in enumerate(self._extract_batches(loader, views), start=1):
                    kept.append(found)
                    if turn % turns and turn < len(loader):
                        continue
                    rows, *parts = gather_rows(
                        *(torch.cat(part) for part in zip(*kept, strict=True))
                    )
                    kept.clear()
                    fresh = rows >= done  # at the end some ranks read the first batches again
                    yield done, [part[fresh] for part in parts]
                    self.reporter.advance(int(fresh.sum()))
                    done += int(fresh.sum())
                    self.num_computed += int(fresh.sum())
                    if self._world_size > 1:
                        sync_stop_request()
        finally:
            self.reporter.finish()

    def _compute_batches_per_write(self, views: ViewSpec) -> int:
        """Return how many batches a rank keeps until all of them are gathered and written."""
        of_batch = sum(self._item_bytes) * len(views.names) * self._batch_size
        return max(
            1, min(_MAX_BATCHES_PER_WRITE, _MAX_BYTES_PER_WRITE // self._world_size // of_batch)
        )

    def _create_loader(self, paths: Sequence[Path], views: ViewSpec) -> Any:
        source = FileSource(paths, max_pixels=self.plan.max_pixels)
        return create_loader(
            ImageDataset(
                source, None, MultiCropTransform(EvalTransform(self.plan.spec), views.num_crops)
            ),
            num_workers=self.plan.num_workers,
            batch_sampler=DistributedBatchSampler(
                len(paths),
                batch_size=self._batch_size,
                num_replicas=self._world_size,
                rank=self._rank,
            ),
            pin_memory=self.device.type == "cuda",
        )

    def _extract_batches(self, batches: Iterator[Batch], views: ViewSpec) -> Iterator[list[Tensor]]:
        """Yield rows (B,) of batches, and the answers about them."""
        found = extract_features(
            self.extractor,
            batches,
            spec=self.plan.spec,
            device=self.device,
            views=views,
            autocast=autocast(self.plan.precision, self.device),
        )
        for rows, answers in found:
            if not all(torch.isfinite(answer).all() for answer in answers):
                raise TrainingError(
                    f"The backbone's features are no numbers in trainer.precision="
                    f"{self.plan.precision}. Take 32-true, or probe.enabled=off."
                )
            yield [rows, *answers]

    def _open_stores(self, output_name: str, views: ViewSpec) -> list[FeatureStore]:
        """Return the stores of an answer about each view, on rank 0."""
        if self._rank > 0:
            return []
        plan, made_by = self.plan, f"{output_name}-{self._digest}"
        return [
            FeatureStore(plan.root, tag=f"{made_by}-{view}", owner=plan.owner)
            for view in views.names
        ]

    def _evict_to_fit(self, counts: NDArray[np.int64]) -> None:
        """Let older stores make way for so many new items of each answer.

        Raises:
            StorageError: Maps do not fit. Features are kept whatever the limit: they are small.
        """
        plan, needed = self.plan, int(np.dot(counts, self._item_bytes)) if len(counts) else 0
        if not needed:
            return
        fits = evict_to_fit(plan.root, needed_bytes=needed, limit_bytes=plan.limit_bytes)
        if not fits and self.activation_layout is not None:
            raise StorageError(
                f"There is no room at {plan.root} for {needed / 1e9:.2g} GB of maps "
                f"(cache.max_gb={plan.limit_bytes / 1e9:g}, other runs' included). Raise "
                f"cache.max_gb, or take fewer probe.num_crops, or probe.depth=1."
            )

    def _compute_activation_layout(self) -> ActivationLayout | None:
        with autocast(self.plan.precision, self.device):
            example = torch.zeros(1, *self.plan.spec.input_size, device=self.device)
            return self.extractor.compute_activation_layout(example)

    def _compute_digest(self) -> str:
        """Return what tells answers of one backbone and preprocessing from those of another."""
        plan = self.plan
        made_by = (
            compute_backbone_digest(self.extractor.network),
            plan.model_args_json,
            plan.spec,
            plan.precision,
        )
        return hashlib.sha256("\0".join(map(str, made_by)).encode()).hexdigest()[:16]
