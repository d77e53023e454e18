"""Cached feature extraction: stored features are reused, the others are computed on all ranks."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.cache.eviction import evict_to_fit
from finetune.data.dataset import Batch, ImageDataset, create_loader, translate_worker_errors
from finetune.data.images.source import FileSource
from finetune.data.samplers.epoch_sampler import DistributedBatchSampler
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.distributed.collectives import gather_rows, sync_stop_request
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import StorageError, TrainingError
from finetune.models.classifier import normalise
from finetune.probe.features.extraction_plan import ExtractionPlan
from finetune.probe.features.extractor import (
    ActivationLayout,
    FeatureExtractor,
    drop_inexact_stages,
    extract_features,
    fold_where_exact,
)
from finetune.probe.features.feature_store import (
    StoredFeatures,
    ViewStores,
    compute_store_digest,
    open_view_stores,
)
from finetune.probe.features.views import ViewSpec, ViewSubset
from finetune.system.hardware import (
    autocast,
    explain_out_of_memory,
    is_out_of_memory,
    release_memory,
)
from finetune.types import Reporter
from finetune.units import format_bytes

_EVAL_VIEW = ViewSpec()
_BATCH_SIZE, _CPU_BATCH_SIZE = 32, 16
"""Images of a forward pass.

On a CPU the activations of 32 images at 224 px are blocks so large (32 MiB) that glibc returns
their memory to the system after each layer; below 16 images, torch does not run convolutions with
oneDNN on a single thread, but slower.
"""

# folding BatchNorm and its check cost as much as some images
_MIN_IMAGES_TO_FOLD, _NUM_CHECKED_IMAGES = 16, 2
_MAX_BATCHES_PER_WRITE = 16
_MAX_BYTES_PER_WRITE = 2**26
"""Limits between two writes: batches of each rank, and bytes of all ranks together.

The lower limit applies, but at least one batch of each rank is written at a time.
"""


class CachedFeatureExtractor:
    """Feature extractor of image files that stores its outputs and reuses stored ones.

    Args:
        extractor: Extractor whose network is in eval mode, on the device; the same on all ranks.
        plan: Settings of the extraction and of the stores.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks, in a process group; None for a single process.
        reporter: Receiver of progress.

    Attributes:
        activation_layout: Layout of the activations of an image; None where none are extracted.
        stage_widths: Number of means of each earlier stage; empty where none are extracted.
        num_computed: Number of images that were passed through the network so far.
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
        self.plan = plan
        self.device = device
        self.reporter = reporter
        self.num_computed = 0
        self._batch_size = _CPU_BATCH_SIZE if device.type == "cpu" else _BATCH_SIZE
        self._running_extractor: FeatureExtractor | None = None
        self._rank = 0 if rendezvous is None else rendezvous.launch.rank
        self._world_size = 1 if rendezvous is None else rendezvous.launch.world_size
        self.extractor = self._check_stages(extractor)
        self._digest = ""
        if self._rank == 0:
            self._digest = compute_store_digest(
                extractor.network,
                model_args_json=plan.model_args_json,
                spec=plan.spec,
                precision=plan.precision,
                pixel_range=plan.options.pixel_range,
            )
        self.activation_layout, self.stage_widths = self._compute_layouts()
        self._item_bytes = [4 * extractor.head.in_features]
        if self.activation_layout is not None:
            self._item_bytes.append(4 * self.activation_layout.shape.numel())
        if self.stage_widths:
            self._item_bytes.append(4 * sum(self.stage_widths))

    def extract(
        self, paths: Sequence[Path], views: ViewSpec = _EVAL_VIEW
    ) -> list[list[StoredFeatures]]:
        """Return for each output its views of the images, each (N, D), the evaluation view first.

        The means of stages, the last output, are those of the evaluation view alone.

        All ranks call it; images that are not stored yet are split across them. Rank 0 alone gets
        the features, the others empty lists.

        Raises:
            DataError: A file can no longer be read as before.
            StorageError: The activations exceed the cache limit, or their disk is full or fails.
            StopRequest: A rank received a stop signal; what was computed by then is stored.
            TrainingError: The features are not finite, or memory does not suffice.
        """
        while True:
            try:
                return self._extract_once(paths, views)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # other ranks would not know of a smaller batch
                if self._batch_size == 1 or self._world_size > 1:
                    raise TrainingError(
                        f"{explain_out_of_memory(error)} A forward pass of the frozen backbone on "
                        f"{self._batch_size} image(s) does not fit. Use a smaller --image-size, or "
                        f"set probe.enabled=off."
                    ) from None
            # outside of the handler, which keeps the tensors of the failed batch
            release_memory()
            self._batch_size //= 2

    def _extract_once(self, paths: Sequence[Path], views: ViewSpec) -> list[list[StoredFeatures]]:
        with self._open_stores(paths, views) if self._rank == 0 else nullcontext() as stores:
            message: list[Any] = [None if stores is None else stores.find_missing()]
            if self._world_size > 1:
                dist.broadcast_object_list(message, src=0)
            rows, missing_views = message[0]
            if stores is not None:
                self._evict_to_fit(stores.count_missing())
            missing_paths = [paths[row] for row in rows.tolist()]
            subset = ViewSubset(views, missing_views)
            for start, outputs in self._compute_missing(missing_paths, subset):
                if stores is not None:
                    chunk = rows[start : start + len(outputs[0])]
                    stores.append(chunk, missing_views, outputs)
            return [[] for _ in self.extractor.output_names] if stores is None else stores.read()

    def _compute_missing(
        self, paths: Sequence[Path], views: ViewSubset
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield the index of the first image of a chunk and the chunk's outputs, each (n, V, D)."""
        if not paths:
            return
        loader = self._create_loader(paths, views)
        if len(paths) >= _MIN_IMAGES_TO_FOLD and self._running_extractor is None:
            self._running_extractor = self._fold(loader.dataset, views)
        self.reporter.start("extracting features", len(paths))
        pending: list[list[Tensor]] = []
        batches_per_write = self._compute_batches_per_write(views)
        num_done = 0
        try:
            with translate_worker_errors():
                for number, batch in enumerate(self._extract_batches(loader, views), start=1):
                    pending.append(batch)
                    if number % batches_per_write and number < len(loader):
                        continue
                    rows, *outputs = gather_rows(
                        *(torch.cat(column) for column in zip(*pending, strict=True))
                    )
                    pending.clear()
                    # in the last round some ranks repeat images of the first batches
                    is_new = rows >= num_done
                    yield num_done, [output[is_new] for output in outputs]
                    self.reporter.advance(int(is_new.sum()))
                    num_done += int(is_new.sum())
                    self.num_computed += int(is_new.sum())
                    if self._world_size > 1:
                        sync_stop_request()
        finally:
            self.reporter.finish()

    def _compute_batches_per_write(self, views: ViewSubset) -> int:
        """Return how many batches each rank collects before all are gathered and written."""
        bytes_per_batch = sum(self._item_bytes) * len(views.names) * self._batch_size
        max_batches = _MAX_BYTES_PER_WRITE // self._world_size // bytes_per_batch
        return max(1, min(_MAX_BATCHES_PER_WRITE, max_batches))

    def _create_loader(self, paths: Sequence[Path], views: ViewSubset) -> Any:
        source = FileSource(paths, options=self.plan.options)
        return create_loader(
            ImageDataset(source, None, views.build_transform(EvalTransform(self.plan.spec))),
            num_workers=self.plan.num_workers,
            batch_sampler=DistributedBatchSampler(
                len(paths),
                batch_size=self._batch_size,
                num_replicas=self._world_size,
                rank=self._rank,
            ),
            pin_memory=self.device.type == "cuda",
        )

    def _extract_batches(
        self, batches: Iterator[Batch], views: ViewSubset
    ) -> Iterator[list[Tensor]]:
        """Yield the rows (B,) of each batch, followed by its outputs."""
        extracted = extract_features(
            self._running_extractor or self.extractor,
            batches,
            spec=self.plan.spec,
            device=self.device,
            views=views,
            autocast=autocast(self.plan.precision, self.device),
        )
        for rows, outputs in extracted:
            if not all(torch.isfinite(output).all() for output in outputs):
                raise TrainingError(
                    f"The backbone's features contain NaN or infinity at trainer.precision="
                    f"{self.plan.precision}. Set trainer.precision=32-true or probe.enabled=off."
                )
            yield [rows, *outputs]

    def _fold(self, dataset: ImageDataset, views: ViewSubset) -> FeatureExtractor:
        """Return an extractor with BatchNorm folded, or the given one; the same on all ranks.

        Both have the same outputs up to rounding, so stored ones remain valid and may be mixed.
        """
        spec, images = self.plan.spec, None
        if self._rank == 0:
            pixels = dataset.__getitems__(range(_NUM_CHECKED_IMAGES))["image"].to(self.device)
            images = normalise(next(views.iter_views(pixels)), mean=spec.mean, std=spec.std)
        return fold_where_exact(self.extractor, images, is_distributed=self._world_size > 1)

    def _open_stores(self, paths: Sequence[Path], views: ViewSpec) -> ViewStores:
        plan = self.plan
        names = self.extractor.output_names
        # means of stages serve the evaluation view alone
        view_names = [views.names for _ in names]
        if self.stage_widths:
            view_names[-1] = views.names[:1]
        return open_view_stores(
            plan.root,
            [
                [f"{name}-{self._digest}-{view}" for view in by_view]
                for name, by_view in zip(names, view_names, strict=True)
            ],
            paths,
            owner=plan.owner,
            large_output=None if self.activation_layout is None else 1,
            reporter=self.reporter,
        )

    def _evict_to_fit(self, counts: NDArray[np.int64]) -> None:
        """Remove older stores until the given number of new items of each output fits.

        Raises:
            StorageError: Activations do not fit. Features are stored whatever the limit is, since
                they are small.
        """
        plan, needed = self.plan, int(np.dot(counts, self._item_bytes))
        if not needed:
            return
        try:
            fits = evict_to_fit(plan.root, needed_bytes=needed, limit_bytes=plan.limit_bytes)
        except StorageError:
            return  # the stores know what to do
        if not fits and self.activation_layout is not None:
            raise StorageError(
                f"The activations need {format_bytes(needed)} in {plan.root}, but "
                f"cache.max_gb={plan.limit_bytes / 1e9:g}, which includes the caches of other runs "
                f"in use, does not allow that. Raise cache.max_gb, reduce probe.num_crops, or set "
                f"probe.depth=1."
            )

    def _check_stages(self, extractor: FeatureExtractor) -> FeatureExtractor:
        """Return the extractor, without its stages if their graph is not exact; as on rank 0."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, *self.plan.spec.input_size, generator=generator).to(self.device)
        return drop_inexact_stages(extractor, images, is_distributed=self._world_size > 1)

    def _compute_layouts(self) -> tuple[ActivationLayout | None, tuple[int, ...]]:
        """Return the layout of the activations, and the widths of the stages."""
        with autocast(self.plan.precision, self.device):
            example = torch.zeros(1, *self.plan.spec.input_size, device=self.device)
            return (
                self.extractor.compute_activation_layout(example),
                self.extractor.compute_stage_widths(example),
            )
