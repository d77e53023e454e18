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
from torch import Tensor, nn

from finetune.data.dataset import Batch, ImageDataset, create_loader, lost_readers_explained
from finetune.data.file_state import file_states
from finetune.data.room import make_room
from finetune.data.sampler import WholeBatches
from finetune.data.source import FileSource
from finetune.data.store import NOWHERE
from finetune.data.transform import EvalTransform, Zoomed
from finetune.errors import TrainingError
from finetune.machine import (
    autocast,
    explain_out_of_memory,
    is_out_of_memory,
    release_memory,
)
from finetune.models.head import backbone_digest, linear_head
from finetune.probe.features import FeatureStore, StoredFeatures, Views, as_stored, extract
from finetune.probe.logistic import Rows
from finetune.training.gather import gather_rows
from finetune.training.meeting import Meeting, stop_together
from finetune.types import PreprocessSpec, Reporter

_AS_SEEN = Views()
_BATCH = 32
_BATCHES_KEPT = 16
"""Of every rank, between two writes."""


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """How features are made, and where they are kept.

    Attributes:
        spec: What the network expects.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        root: Folder of all stores.
        owner: The data set, by its folder.
        limit_bytes: Of all stores together.
        num_workers: Reading processes of each rank.
        max_pixels: Larger images are refused.
    """

    spec: PreprocessSpec
    precision: str
    root: Path
    owner: str
    limit_bytes: int
    num_workers: int
    max_pixels: int


class Features:
    """What a backbone says of images.

    Args:
        network: In eval mode, on the device; the same on all ranks.
        plan: Ways and places.
        device: Of this rank.
        met: The ranks, in a process group; None for one alone.
        reporter: Told of the progress.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: FeaturePlan,
        *,
        device: torch.device,
        met: Meeting | None,
        reporter: Reporter,
    ) -> None:
        head = linear_head(network)
        assert head is not None, "looked for by who plans"
        self.network = network
        self.head = head
        self.plan = plan
        self.device = device
        self.reporter = reporter
        self.num_computed = 0
        self._batch = _BATCH
        self._rank = 0 if met is None else met.launch.rank
        self._ranks = 1 if met is None else met.launch.world_size
        self._form = self._fingerprint() if self._rank == 0 else ""

    def of(self, paths: Sequence[Path], views: Views = _AS_SEEN) -> list[Rows]:
        """Return the views of images on rank 0, each (N, D), the first as evaluation sees it.

        All ranks call it, and share what is not known yet; the others get an empty list.

        Raises:
            DataError: A file no longer reads as it did before.
            StorageError: The disk is full or fails.
            StopRequest: A rank was asked to stop; what was computed is kept.
            TrainingError: The backbone does not answer in numbers, or needs more memory than there
                is.
        """
        while True:
            try:
                return self._of(paths, views)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._batch == 1 or self._ranks > 1:  # the others cannot know of it
                    raise TrainingError(
                        f"{explain_out_of_memory(error)} The frozen backbone does not take even "
                        f"{self._batch} image(s) at once. Take a smaller --image-size, or "
                        f"probe.enabled=off."
                    ) from None
            # outside of the handler, which keeps the tensors of the failed batch
            release_memory()
            self._batch //= 2

    def _of(self, paths: Sequence[Path], views: Views) -> list[Rows]:
        files = file_states(paths)
        with ExitStack() as filling:
            stores = [self._opened(view) for view in views.names] if self._rank == 0 else []
            for store in stores:
                filling.enter_context(store.filling(self.reporter))
                store.forget_waste()
            unknown = [
                np.any([store.find(files)[:, 0] == NOWHERE.start for store in stores], axis=0)
            ]
            if self._ranks > 1:
                dist.broadcast_object_list(unknown, src=0)
            rows = np.flatnonzero(unknown[0]).tolist()
            if stores and len(rows):
                self._make_room(len(rows) * len(stores))
            for first, features in self._computed([paths[row] for row in rows], views):
                chosen = [files[row] for row in rows[first : first + len(features)]]
                for view, store in enumerate(stores):
                    for _ in store.append(as_stored(chosen, features[:, view].numpy())):
                        pass
            return [StoredFeatures(store, store.find(files)) for store in stores]

    def _computed(self, paths: Sequence[Path], views: Views) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of the first image of a stretch and the features (n, V, D) of it."""
        if not paths:
            return
        self.num_computed += len(paths)
        loader = self._loader(paths, views)
        self.reporter.start("asking the backbone", len(paths))
        kept: list[tuple[Tensor, Tensor]] = []
        done = 0
        try:
            with lost_readers_explained():
                for turn, found in enumerate(self._extracted(loader, views), start=1):
                    kept.append(found)
                    if turn % _BATCHES_KEPT and turn < len(loader):
                        continue
                    rows, features = gather_rows(
                        *(torch.cat(part) for part in zip(*kept, strict=True))
                    )
                    kept.clear()
                    fresh = rows >= done  # at the end some ranks read the first batches again
                    yield done, features[fresh]
                    self.reporter.advance(int(fresh.sum()))
                    done += int(fresh.sum())
                    if self._ranks > 1:
                        stop_together()
        finally:
            self.reporter.finish()

    def _loader(self, paths: Sequence[Path], views: Views) -> Any:
        source = FileSource(paths, max_pixels=self.plan.max_pixels)
        return create_loader(
            ImageDataset(source, None, Zoomed(EvalTransform(self.plan.spec), views.parts)),
            num_workers=self.plan.num_workers,
            batches=WholeBatches(
                len(paths), batch_size=self._batch, num_replicas=self._ranks, rank=self._rank
            ),
            pin_memory=self.device.type == "cuda",
        )

    def _extracted(self, batches: Iterator[Batch], views: Views) -> Iterator[tuple[Tensor, Tensor]]:
        found = extract(
            self.network,
            self.head,
            batches,
            spec=self.plan.spec,
            device=self.device,
            views=views,
            precision=autocast(self.plan.precision, self.device),
        )
        for rows, features in found:
            if not torch.isfinite(features).all():
                raise TrainingError(
                    f"The backbone's features are no numbers in trainer.precision="
                    f"{self.plan.precision}. Take 32-true, or probe.enabled=off."
                )
            yield rows, features

    def _opened(self, view: str) -> FeatureStore:
        return FeatureStore(self.plan.root, form=f"{self._form}-{view}", owner=self.plan.owner)

    def _make_room(self, count: int) -> None:
        num_bytes = 4 * self.head.in_features * count
        make_room(self.plan.root, needed_bytes=num_bytes, limit_bytes=self.plan.limit_bytes)

    def _fingerprint(self) -> str:
        """Return what tells features of one backbone and preprocessing from those of another."""
        plan = self.plan
        made_by = f"{backbone_digest(self.network)}\0{plan.spec}\0{plan.precision}"
        return f"features-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}"
