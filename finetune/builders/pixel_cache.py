"""Whether decoded images are kept, where, and at what size; and a data module that reads them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.data.cache.array_store import NOWHERE, store_folder
from finetune.data.cache.eviction import make_room, stores_root
from finetune.data.cache.file_stamp import file_states
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.data.cache.pixel_writer import (
    Decode,
    DecodingSource,
    estimated_bytes,
    fill_store,
    ready,
    shrunk,
)
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import PictureSource
from finetune.data.manifest import Manifest
from finetune.data.transforms.eval_transform import AsStored, EvalTransform, Transform
from finetune.errors import ConfigError
from finetune.system.hardware import free_cores
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
        on_disk: Whether there is room; else the same pixels are made in every epoch.
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
    on_disk: bool = True

    @property
    def train_form(self) -> str:
        """What is stored of a training image."""
        return self.val_form if self.shorter_side is None else f"short-{self.shorter_side}"

    @property
    def val_form(self) -> str:
        """What is stored of a validation image: what evaluation sees."""
        _, height, width = self.spec.input_size
        parts = [self.spec.crop_mode, self.spec.interpolation, f"{self.spec.crop_pct:g}"]
        if self.spec.crop_mode == "border":  # which is painted in the mean colour
            parts += [f"{value:g}" for value in self.spec.mean]
        return "-".join([*parts, f"{height}x{width}"])


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """A config in which ``data.cache`` is decided, and the plan or why there is none."""

    config: Config
    plan: CachePlan | None
    why_not: str = ""


def choose_cache(
    config: Config,
    manifest: Manifest,
    transform: Transform,
    spec: PreprocessSpec,
    *,
    going_on: bool = False,
    beside_bytes: int = 0,
) -> CacheChoice:
    """Decide whether the images of a run are decoded once or in every epoch.

    Args:
        config: Resolved but for this.
        manifest: The images.
        transform: Of training images.
        spec: Of the network.
        going_on: Whether the run has begun: then its pixels stay as they are, and without room on
            the disk they are made in every epoch.
        beside_bytes: What else the run keeps in the same place.

    Raises:
        ConfigError: The cache was asked for and cannot be, or a setting of it cannot apply.
    """
    asked = config.data.cache
    if asked == "off":
        if config.data.cache_px != "auto":
            raise ConfigError(
                f"data.cache_px={config.data.cache_px} cannot apply to data.cache=off: the images "
                f"are read at their full size. Leave one of them out."
            )
        return CacheChoice(config, None, "off")
    root = stores_root(asked)
    side = _shorter_side(config, transform)
    plan = _plan(config, manifest, root, side, spec)
    reason = _why_not(config, plan, needs_side=transform.draws, beside_bytes=beside_bytes)
    if asked == "auto" and int(config.trainer.epochs) == 1:
        reason = reason or "one epoch only"
    if reason and asked == "auto":
        off = {"data.cache": "off", "data.cache_px": "auto"}
        return CacheChoice(replaced(config, off), None, reason)
    if reason and not going_on:
        raise ConfigError(f"data.cache={asked}: {reason}. Or set data.cache=off.")
    decided: dict[str, str | int] = {"data.cache": "on" if asked in ("auto", "on") else str(root)}
    if side is not None:
        decided["data.cache_px"] = side
    return CacheChoice(replaced(config, decided), replace(plan, on_disk=not reason), reason)


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
    train_way: tuple[Decode, Transform] = (as_seen, stored)
    if plan.shorter_side is not None:
        small = partial(shrunk, shorter_side=plan.shorter_side, max_pixels=plan.max_pixels)
        train_way = (small, data.train.transform)
    stores = _stores_with_room(plan, reporter)
    train = _kept(data.train, stores and stores[0], *train_way, reporter)
    val = _kept(data.val, stores and stores[1], as_seen, stored, reporter)
    return ImageDataModule(train, val, sampling=data.sampling, loading=data.loading)


def _stores_with_room(plan: CachePlan, reporter: Reporter) -> tuple[PixelStore, PixelStore] | None:
    """Return the stores of training and validation images, or None, said, where they do not fit."""
    if plan.on_disk:
        # in use before room is made, which might remove them otherwise
        stores = (
            PixelStore(plan.root, form=plan.train_form, owner=plan.owner),
            PixelStore(plan.root, form=plan.val_form, owner=plan.owner),
        )
        fits = make_room(plan.root, needed_bytes=plan.new_bytes, limit_bytes=plan.limit_bytes)
        if fits or not plan.new_bytes:
            return stores
    reporter.warn(
        f"There is no room at {plan.root} for {plan.new_bytes / 1e9:.1f} GB of pixels (cache.max_gb"
        f"={plan.limit_bytes / 1e9:g}, other runs' included): every epoch decodes the images anew, "
        f"to the same pixels. Free space, or resume with data.cache=PATH."
    )
    return None


def _kept(
    dataset: ImageDataset,
    store: PixelStore | None,
    decode: Decode,
    transform: Transform,
    reporter: Reporter,
) -> ImageDataset:
    paths = [Path(dataset.source.name(row)) for row in range(len(dataset))]
    source: PictureSource = DecodingSource(paths, decode)
    if store is not None:
        places = fill_store(store, paths, decode, num_threads=free_cores(), reporter=reporter)
        source = StoredSource(store, paths, places)
    return ImageDataset(source, dataset.labels.tolist(), transform)


def _shorter_side(config: Config, transform: Transform) -> int | None:
    """Return the size of stored training images, or None where nothing tells it."""
    if config.data.cache_px != "auto":
        return config.data.cache_px
    return transform.needed_px


def _plan(
    config: Config, manifest: Manifest, root: Path, side: int | None, spec: PreprocessSpec
) -> CachePlan:
    ready_bytes = spec.input_size[1] * spec.input_size[2] * 3
    train, val = (manifest.paths(manifest.of(split)) for split in (Split.TRAIN, Split.VAL))
    of_train = (
        ready_bytes * len(train) if side is None else estimated_bytes(train, shorter_side=side)
    )
    plan = CachePlan(
        root=root,
        owner=str(manifest.root),
        shorter_side=side,
        spec=spec,
        max_pixels=int(config.data.max_megapixels * 1e6),
        num_bytes=of_train + ready_bytes * len(val),
        new_bytes=0,
        limit_bytes=round(config.cache.max_gb * 1e9),
    )
    new_train = of_train * _missing_share(plan, plan.train_form, train)
    new_val = ready_bytes * len(val) * _missing_share(plan, plan.val_form, val)
    return replace(plan, new_bytes=round(new_train + new_val))


def _missing_share(plan: CachePlan, form: str, paths: Sequence[Path]) -> float:
    """Return the share of some images that a store does not hold, in [0, 1]; makes no store."""
    if not paths or not store_folder(plan.root, form=form, owner=plan.owner).is_dir():
        return 1.0
    store = PixelStore(plan.root, form=form, owner=plan.owner)
    missing = store.find(file_states(paths))[:, 0] == NOWHERE.start
    return float(missing.mean())


def _why_not(config: Config, plan: CachePlan, *, needs_side: bool, beside_bytes: int) -> str:
    """Return why the plan cannot be, or an empty string."""
    if needs_side and plan.shorter_side is None:
        return (
            f"the pipeline {config.augment.name} does not begin with RandomResizedCrop or Resize, "
            f"so that it may need the full images; data.cache_px=PIXELS says how much it needs"
        )
    beside = f" beside {beside_bytes / 1e9:.1f} GB of maps" if beside_bytes else ""
    if plan.num_bytes + beside_bytes > plan.limit_bytes:
        return (
            f"{plan.num_bytes / 1e9:.1f} GB of pixels{beside} are more than "
            f"cache.max_gb={config.cache.max_gb:g} allows"
        )
    free = _free_bytes(plan.root)
    if plan.new_bytes and free - plan.new_bytes - beside_bytes < _SPARE_BYTES:
        return (
            f"{plan.new_bytes / 1e9:.1f} GB of pixels{beside} do not fit into the "
            f"{free / 1e9:.1f} GB free at {plan.root}"
        )
    return ""


def _free_bytes(folder: Path) -> int:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(existing).free
