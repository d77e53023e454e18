"""Whether decoded images are kept, where, and at what size; and a data module that reads them."""

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import platformdirs

from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.data.cache import PixelStore, StoredSource, make_room, store_folder, stored_bytes
from finetune.data.dataset import ImageDataset
from finetune.data.fill import Decode, estimated_bytes, fill_store, ready, shrunk
from finetune.data.manifest import Manifest
from finetune.data.transform import AsStored, EvalTransform, TrainTransform, Transform
from finetune.errors import ConfigError
from finetune.machine import free_cores
from finetune.training.datamodule import ImageDataModule
from finetune.types import PreprocessSpec, Reporter, Split

_SPARE_BYTES = 2_000_000_000
"""What a cache leaves free on a disk."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How the pixels of a run are kept.

    Attributes:
        root: Folder of all stores.
        owner: The data set, by its folder.
        shorter_side: Of stored training images; None where they are stored as evaluation sees them.
        spec: How evaluation sees them.
        max_pixels: Larger images are refused.
        num_bytes: About how much there will be.
        new_bytes: About how much of it is not there yet.
        limit_bytes: Of all stores together.
    """

    root: Path
    owner: str
    shorter_side: int | None
    spec: PreprocessSpec
    max_pixels: int
    num_bytes: int
    new_bytes: int
    limit_bytes: int

    @property
    def train_form(self) -> str:
        """What is stored of a training image."""
        return self.val_form if self.shorter_side is None else f"short-{self.shorter_side}"

    @property
    def val_form(self) -> str:
        """What is stored of a validation image: what evaluation sees."""
        _, height, width = self.spec.input_size
        name = f"{self.spec.crop_mode}-{self.spec.interpolation}-{self.spec.crop_pct:g}"
        return f"{name}-{height}x{width}"


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """A config in which ``data.cache`` is decided, and the plan or why there is none."""

    config: Config
    plan: CachePlan | None
    why_not: str = ""


def choose_cache(
    config: Config, manifest: Manifest, transform: Transform, spec: PreprocessSpec
) -> CacheChoice:
    """Decide whether the images of a run are decoded once or in every epoch.

    Raises:
        ConfigError: The cache was asked for and cannot be.
    """
    asked = config.data.cache
    root = cache_root() if asked in ("auto", "on", "off") else Path(asked).expanduser().resolve()
    side = _shorter_side(config, transform)
    if side is not None:
        config = replaced(config, {"data.cache_px": side})
    if asked == "off":
        return CacheChoice(config, None, "off")
    plan = _plan(config, manifest, root, side, spec)
    reason = _why_not(config, plan, needs_side=isinstance(transform, TrainTransform))
    if asked == "auto" and int(config.trainer.epochs) == 1:
        reason = reason or "one epoch only"
    if reason and asked != "auto":
        raise ConfigError(f"data.cache={asked}: {reason}. Or set data.cache=off.")
    if reason:
        return CacheChoice(replaced(config, {"data.cache": "off"}), None, reason)
    kept = "on" if asked in ("auto", "on") else str(root)
    return CacheChoice(replaced(config, {"data.cache": kept}), plan)


def cache_root() -> Path:
    """Return ``$FINETUNE_CACHE``, else this user's cache folder."""
    named = os.environ.get("FINETUNE_CACHE")
    return (Path(named).expanduser() if named else platformdirs.user_cache_path("finetune")) / (
        "pixels"
    )


def cached(data: ImageDataModule, plan: CachePlan, *, reporter: Reporter) -> ImageDataModule:
    """Return the data module over stored pixels, decoding what the stores do not hold yet.

    Every process of a run may call it: one of each machine decodes, the others wait for it.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
    """
    seen = EvalTransform(plan.spec)
    as_seen = partial(ready, transform=seen, max_pixels=plan.max_pixels)
    stored = AsStored(seen.size)
    # in use before room is made, which might remove them otherwise
    train_store = PixelStore(plan.root, form=plan.train_form, owner=plan.owner)
    val_store = PixelStore(plan.root, form=plan.val_form, owner=plan.owner)
    make_room(plan.root, needed_bytes=plan.new_bytes, limit_bytes=plan.limit_bytes)
    if plan.shorter_side is None:
        train = _stored(data.train, train_store, as_seen, reporter, stored)
    else:
        small = partial(shrunk, shorter_side=plan.shorter_side, max_pixels=plan.max_pixels)
        train = _stored(data.train, train_store, small, reporter, data.train.transform)
    val = _stored(data.val, val_store, as_seen, reporter, stored)
    return ImageDataModule(train, val, weights=data.weights, loading=data.loading)


def _stored(
    dataset: ImageDataset,
    store: PixelStore,
    decode: Decode,
    reporter: Reporter,
    transform: Transform,
) -> ImageDataset:
    paths = [Path(dataset.source.name(row)) for row in range(len(dataset))]
    places = fill_store(store, paths, decode, num_threads=free_cores(), reporter=reporter)
    return ImageDataset(StoredSource(store, paths, places), dataset.labels.tolist(), transform)


def _shorter_side(config: Config, transform: Transform) -> int | None:
    """Return the size of stored training images, or None where nothing tells it."""
    if config.data.cache_px != "auto":
        return config.data.cache_px
    if isinstance(transform, TrainTransform) and transform.opening is not None:
        return transform.opening.needed_px()
    return None


def _plan(
    config: Config, manifest: Manifest, root: Path, side: int | None, spec: PreprocessSpec
) -> CachePlan:
    ready_bytes = spec.input_size[1] * spec.input_size[2] * 3
    train = manifest.paths(manifest.of(Split.TRAIN))
    of_train = (
        ready_bytes * len(train) if side is None else estimated_bytes(train, shorter_side=side)
    )
    plan = CachePlan(
        root=root,
        owner=str(manifest.root),
        shorter_side=side,
        spec=spec,
        max_pixels=int(config.data.max_megapixels * 1e6),
        num_bytes=of_train + ready_bytes * len(manifest.of(Split.VAL)),
        new_bytes=0,
        limit_bytes=round(config.cache.max_gb * 1e9),
    )
    folders = {
        store_folder(root, form=form, owner=plan.owner) for form in (plan.train_form, plan.val_form)
    }
    there = sum(stored_bytes(folder) for folder in folders)
    return replace(plan, new_bytes=max(0, plan.num_bytes - there))


def _why_not(config: Config, plan: CachePlan, *, needs_side: bool) -> str:
    """Return why the plan cannot be, or an empty string."""
    if needs_side and plan.shorter_side is None:
        return (
            f"the pipeline {config.augment.name} does not begin with RandomResizedCrop or Resize, "
            f"so that it may need the full images; data.cache_px=PIXELS says how much it needs"
        )
    size = f"{plan.num_bytes / 1e9:.1f} GB"
    if plan.num_bytes > plan.limit_bytes:
        return f"{size} of pixels are more than cache.max_gb={config.cache.max_gb:g} allows"
    free = _free_bytes(plan.root)
    if free - plan.new_bytes < _SPARE_BYTES:
        return (
            f"{plan.new_bytes / 1e9:.1f} GB of pixels do not fit into the {free / 1e9:.1f} GB free "
            f"at {plan.root}"
        )
    return ""


def _free_bytes(folder: Path) -> int:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(existing).free
