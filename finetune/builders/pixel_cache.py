"""Whether decoded images are kept, where, and at what size; and a data module that reads them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.data.cache.array_store import NOT_STORED, get_store_folder
from finetune.data.cache.eviction import evict_to_fit, resolve_cache_root
from finetune.data.cache.file_stamp import read_file_stamps
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.data.cache.pixel_writer import (
    DecodeFn,
    DecodingSource,
    decode_resized,
    decode_transformed,
    estimate_store_bytes,
    fill_store,
)
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import ImageSource
from finetune.data.manifest import Manifest
from finetune.data.transforms.eval_transform import EvalTransform, IdentityTransform, Transform
from finetune.errors import ConfigError
from finetune.system.hardware import count_available_cores
from finetune.training.datamodule import ImageDataModule
from finetune.types import PreprocessSpec, Reporter, Split

_MIN_FREE_DISK_BYTES = 2_000_000_000
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
        fits_on_disk: Whether there is room; else the same pixels are made in every epoch.
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
    fits_on_disk: bool = True

    @property
    def train_tag(self) -> str:
        """What is stored of a training image."""
        return self.val_tag if self.shorter_side is None else f"short-{self.shorter_side}"

    @property
    def val_tag(self) -> str:
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
    reason: str = ""


def choose_cache(
    config: Config,
    manifest: Manifest,
    transform: Transform,
    spec: PreprocessSpec,
    *,
    is_resumed: bool = False,
    reserved_bytes: int = 0,
) -> CacheChoice:
    """Decide whether the images of a run are decoded once or in every epoch.

    Args:
        config: Resolved but for this.
        manifest: The images.
        transform: Of training images.
        spec: Of the network.
        is_resumed: Whether the run has begun: then its pixels stay as they are, and without room on
            the disk they are made in every epoch.
        reserved_bytes: What else the run keeps in the same place.

    Raises:
        ConfigError: The cache was asked for and cannot be, or a setting of it cannot apply.
    """
    asked = config.data.cache
    if asked == "off":
        if config.data.cache_shorter_side != "auto":
            raise ConfigError(
                f"data.cache_shorter_side={config.data.cache_shorter_side} cannot apply to data.cache=off: the images "
                f"are read at their full size. Leave one of them out."
            )
        return CacheChoice(config, None, "off")
    root = resolve_cache_root(asked)
    side = _resolve_shorter_side(config, transform)
    plan = _build_cache_plan(config, manifest, root, side, spec)
    reason = _find_cache_obstacle(
        config, plan, needs_shorter_side=transform.is_random, reserved_bytes=reserved_bytes
    )
    if asked == "auto" and int(config.trainer.epochs) == 1:
        reason = reason or "one epoch only"
    if reason and asked == "auto":
        off = {"data.cache": "off", "data.cache_shorter_side": "auto"}
        return CacheChoice(replace_values(config, off), None, reason)
    if reason and not is_resumed:
        raise ConfigError(f"data.cache={asked}: {reason}. Or set data.cache=off.")
    decided: dict[str, str | int] = {"data.cache": "on" if asked in ("auto", "on") else str(root)}
    if side is not None:
        decided["data.cache_shorter_side"] = side
    return CacheChoice(
        replace_values(config, decided), replace(plan, fits_on_disk=not reason), reason
    )


def build_cached_datamodule(
    datamodule: ImageDataModule, plan: CachePlan, *, reporter: Reporter
) -> ImageDataModule:
    """Return the data module over stored pixels, decoding what the stores do not hold yet.

    Every process of a run may call it: one of each machine decodes, the others wait for it.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
    """
    seen = EvalTransform(plan.spec)
    as_seen = partial(decode_transformed, transform=seen, max_pixels=plan.max_pixels)
    stored = IdentityTransform(seen.size)
    train_way: tuple[DecodeFn, Transform] = (as_seen, stored)
    if plan.shorter_side is not None:
        small = partial(decode_resized, shorter_side=plan.shorter_side, max_pixels=plan.max_pixels)
        train_way = (small, datamodule.train_dataset.transform)
    stores = _open_stores(plan, reporter)
    train = _build_cached_dataset(
        datamodule.train_dataset, stores and stores[0], *train_way, reporter
    )
    val = _build_cached_dataset(
        datamodule.val_dataset, stores and stores[1], as_seen, stored, reporter
    )
    return ImageDataModule(
        train,
        val,
        sampling_schedule=datamodule.sampling_schedule,
        loader_options=datamodule.loader_options,
    )


def _open_stores(plan: CachePlan, reporter: Reporter) -> tuple[PixelStore, PixelStore] | None:
    """Return the stores of training and validation images, or None, said, where they do not fit."""
    if plan.fits_on_disk:
        # in use before room is made, which might remove them otherwise
        stores = (
            PixelStore(plan.root, tag=plan.train_tag, owner=plan.owner),
            PixelStore(plan.root, tag=plan.val_tag, owner=plan.owner),
        )
        fits = evict_to_fit(plan.root, needed_bytes=plan.new_bytes, limit_bytes=plan.limit_bytes)
        if fits or not plan.new_bytes:
            return stores
    reporter.warn(
        f"There is no room at {plan.root} for {plan.new_bytes / 1e9:.1f} GB of pixels (cache.max_gb"
        f"={plan.limit_bytes / 1e9:g}, other runs' included): every epoch decodes the images anew, "
        f"to the same pixels. Free space, or resume with data.cache=PATH."
    )
    return None


def _build_cached_dataset(
    dataset: ImageDataset,
    store: PixelStore | None,
    decode: DecodeFn,
    transform: Transform,
    reporter: Reporter,
) -> ImageDataset:
    paths = [Path(dataset.source.get_name(row)) for row in range(len(dataset))]
    source: ImageSource = DecodingSource(paths, decode)
    if store is not None:
        places = fill_store(
            store, paths, decode, num_threads=count_available_cores(), reporter=reporter
        )
        source = StoredSource(store, paths, places)
    return ImageDataset(source, dataset.labels.tolist(), transform)


def _resolve_shorter_side(config: Config, transform: Transform) -> int | None:
    """Return the size of stored training images, or None where nothing tells it."""
    if config.data.cache_shorter_side != "auto":
        return config.data.cache_shorter_side
    return transform.min_side_px


def _build_cache_plan(
    config: Config, manifest: Manifest, root: Path, shorter_side: int | None, spec: PreprocessSpec
) -> CachePlan:
    ready_bytes = spec.input_size[1] * spec.input_size[2] * 3
    train, val = (
        manifest.resolve_paths(manifest.get_samples(split)) for split in (Split.TRAIN, Split.VAL)
    )
    of_train = (
        ready_bytes * len(train)
        if shorter_side is None
        else estimate_store_bytes(train, shorter_side=shorter_side)
    )
    plan = CachePlan(
        root=root,
        owner=str(manifest.root),
        shorter_side=shorter_side,
        spec=spec,
        max_pixels=int(config.data.max_megapixels * 1e6),
        num_bytes=of_train + ready_bytes * len(val),
        new_bytes=0,
        limit_bytes=round(config.cache.max_gb * 1e9),
    )
    new_train = of_train * _compute_missing_fraction(plan, plan.train_tag, train)
    new_val = ready_bytes * len(val) * _compute_missing_fraction(plan, plan.val_tag, val)
    return replace(plan, new_bytes=round(new_train + new_val))


def _compute_missing_fraction(plan: CachePlan, tag: str, paths: Sequence[Path]) -> float:
    """Return the share of some images that a store does not hold, in [0, 1]; makes no store."""
    if not paths or not get_store_folder(plan.root, tag=tag, owner=plan.owner).is_dir():
        return 1.0
    store = PixelStore(plan.root, tag=tag, owner=plan.owner)
    missing = store.find(read_file_stamps(paths))[:, 0] == NOT_STORED.start
    return float(missing.mean())


def _find_cache_obstacle(
    config: Config, plan: CachePlan, *, needs_shorter_side: bool, reserved_bytes: int
) -> str:
    """Return why the plan cannot be, or an empty string."""
    if needs_shorter_side and plan.shorter_side is None:
        return (
            f"the pipeline {config.augment.name} does not begin with RandomResizedCrop or Resize, "
            f"so that it may need the full images; data.cache_shorter_side=PIXELS says how much it needs"
        )
    beside = f" beside {reserved_bytes / 1e9:.1f} GB of maps" if reserved_bytes else ""
    if plan.num_bytes + reserved_bytes > plan.limit_bytes:
        return (
            f"{plan.num_bytes / 1e9:.1f} GB of pixels{beside} are more than "
            f"cache.max_gb={config.cache.max_gb:g} allows"
        )
    free = _get_free_disk_bytes(plan.root)
    if plan.new_bytes and free - plan.new_bytes - reserved_bytes < _MIN_FREE_DISK_BYTES:
        return (
            f"{plan.new_bytes / 1e9:.1f} GB of pixels{beside} do not fit into the "
            f"{free / 1e9:.1f} GB free at {plan.root}"
        )
    return ""


def _get_free_disk_bytes(folder: Path) -> int:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(existing).free
