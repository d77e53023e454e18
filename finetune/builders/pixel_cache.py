"""Cache of decoded images: whether, where and at what size; and a data module that reads it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from finetune.config.resolved import ResolvedConfig
from finetune.data.cache.array_store import NOT_STORED, get_store_folder
from finetune.data.cache.eviction import (
    check_cache_root,
    evict_to_fit,
    find_cache_failure,
    resolve_cache_root,
    warn_of_cache_failure,
)
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
from finetune.data.training_data import TrainingData
from finetune.data.transforms.eval_transform import EvalTransform, IdentityTransform, Transform
from finetune.errors import ConfigError, StorageError
from finetune.system.host import count_available_cores
from finetune.training.datamodule import ImageDataModule
from finetune.types import PreprocessSpec, ReadOptions, Reporter
from finetune.units import format_bytes

_MIN_FREE_DISK_BYTES = 2_000_000_000
"""Free space that a cache leaves on its disk."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Plan of the pixel cache of a run.

    Attributes:
        root: Folder of all stores.
        owner: Data folder, which identifies the data set.
        shorter_side: Shorter side of stored training images in pixels; None if they are stored as
            the evaluation transform returns them.
        spec: Preprocessing of the network.
        options: How image files are read.
        num_bytes: Estimated size of all images of the run.
        new_bytes: Estimated size of those that are not stored yet.
        limit_bytes: Maximum size of all stores together.
        fits_on_disk: Whether there is enough space; else every epoch decodes to the same pixels.
    """

    root: Path
    owner: str
    shorter_side: int | None
    spec: PreprocessSpec
    options: ReadOptions
    num_bytes: int
    new_bytes: int
    limit_bytes: int
    fits_on_disk: bool = True

    @property
    def train_tag(self) -> str:
        """Tag of the store of training images."""
        if self.shorter_side is None:
            return self.val_tag
        return f"short-{self.shorter_side}{self.options.pixel_tag}"

    @property
    def val_tag(self) -> str:
        """Tag of the store of validation images, as the evaluation transform returns them."""
        _, height, width = self.spec.input_size
        parts = [self.spec.crop_mode, self.spec.interpolation, f"{self.spec.crop_pct:g}"]
        if self.spec.crop_mode == "border":  # filled with the mean colour
            parts += [f"{value:g}" for value in self.spec.mean]
        return "-".join([*parts, f"{height}x{width}"]) + self.options.pixel_tag


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """Resolved cache settings with their plan.

    Attributes:
        location: Value of ``data.cache``: "on", "off" or a folder.
        shorter_side: Value of ``data.cache_shorter_side``.
        plan: Plan of the cache; None without one.
        disabled_reason: Reason why images are decoded in every epoch; empty if they are not.
    """

    location: str
    shorter_side: int | str
    plan: CachePlan | None
    disabled_reason: str = ""


def choose_cache(
    config: ResolvedConfig,
    data: TrainingData,
    transform: Transform,
    spec: PreprocessSpec,
    *,
    is_resumed: bool = False,
    reserved_bytes: int = 0,
) -> CacheChoice:
    """Decide whether images are decoded once or in every epoch.

    Args:
        config: Resolved config.
        data: Images of the run.
        transform: Transform of the training images.
        spec: Preprocessing of the network.
        is_resumed: Whether the run exists already: its pixels must stay the same, so without disk
            space every epoch decodes to the pixels of the cache.
        reserved_bytes: Size of cached activations in the same folder.

    If the folder cannot be written, every epoch decodes images to the pixels of the cache.

    Raises:
        ConfigError: A cache is requested but not possible.
    """
    requested = config.data.cache
    if requested == "off":
        return CacheChoice("off", config.data.cache_shorter_side, None, "off")
    root = resolve_cache_root(requested)
    given_side = config.data.cache_shorter_side
    shorter_side = transform.min_side_px if given_side == "auto" else given_side
    plan = _build_cache_plan(
        data,
        spec,
        root=root,
        shorter_side=shorter_side,
        options=config.data.read_options,
        limit_bytes=config.cache.max_bytes,
    )
    if transform.is_random and shorter_side is None:
        obstacle = (
            f"the pipeline {config.augment.name} does not begin with RandomResizedCrop or Resize "
            f"and may need images at full resolution; set data.cache_shorter_side=PIXELS"
        )
    else:
        obstacle = _find_limit_obstacle(plan, reserved_bytes=reserved_bytes)
    failure = "" if obstacle else find_cache_failure(root)
    if not obstacle and not failure:
        obstacle = _find_space_obstacle(plan, reserved_bytes=reserved_bytes)
    if requested == "auto":
        if not obstacle and config.trainer.epochs == 1:
            obstacle = "only one epoch"
        if obstacle:
            return CacheChoice("off", "auto", None, obstacle)
    if obstacle and not is_resumed:
        raise ConfigError(f"data.cache={requested}: {obstacle}. Or set data.cache=off.")
    return CacheChoice(
        location="on" if requested in ("auto", "on") else str(root),
        shorter_side=given_side if shorter_side is None else shorter_side,
        plan=replace(plan, fits_on_disk=not (obstacle or failure)),
        disabled_reason=obstacle or failure,
    )


def build_cached_datamodule(
    datamodule: ImageDataModule, plan: CachePlan, *, reporter: Reporter
) -> ImageDataModule:
    """Return the data module that reads from the cache, after decoding images not stored yet.

    On several ranks, each calls it; one process of a node decodes while the others wait for it.

    If the disk is full or fails, every epoch decodes images to the same pixels.

    Raises:
        DataError: A file can no longer be read.
    """
    eval_transform = EvalTransform(plan.spec)
    identity = IdentityTransform(eval_transform.size)
    decode_val: DecodeFn = partial(
        decode_transformed, transform=eval_transform, options=plan.options
    )
    decode_train = decode_val
    train_transform: Transform = identity
    if plan.shorter_side is not None:
        decode_train = partial(decode_resized, shorter_side=plan.shorter_side, options=plan.options)
        train_transform = datamodule.train_dataset.transform
    train_store, val_store = _open_stores(plan, reporter)
    train = _build_cached_dataset(
        datamodule.train_dataset, train_store, decode_train, train_transform, reporter
    )
    val = _build_cached_dataset(datamodule.val_dataset, val_store, decode_val, identity, reporter)
    return ImageDataModule(
        train,
        val,
        sampling_schedule=datamodule.sampling_schedule,
        loader_options=datamodule.loader_options,
    )


def _open_stores(
    plan: CachePlan, reporter: Reporter
) -> tuple[PixelStore, PixelStore] | tuple[None, None]:
    """Return the stores of training and validation images; warn and return None without space."""
    try:
        check_cache_root(plan.root)
        if plan.fits_on_disk:
            # opened before other stores are evicted, so that these are in use and kept
            stores = (
                PixelStore(plan.root, tag=plan.train_tag, owner=plan.owner, options=plan.options),
                PixelStore(plan.root, tag=plan.val_tag, owner=plan.owner, options=plan.options),
            )
            needed, limit = plan.new_bytes, plan.limit_bytes
            if evict_to_fit(plan.root, needed_bytes=needed, limit_bytes=limit) or not needed:
                return stores
    except StorageError as error:
        warn_of_cache_failure(plan.root, error, reporter)
        return None, None
    reporter.warn(
        f"Not enough space at {plan.root} for {format_bytes(plan.new_bytes)} of decoded images "
        f"(cache.max_gb={plan.limit_bytes / 1e9:g}, other runs included): every epoch decodes them "
        f"again, to the same pixels. Free some space, or resume with data.cache=PATH."
    )
    return None, None


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
        try:
            entries = fill_store(
                store, paths, decode, num_threads=count_available_cores(), reporter=reporter
            )
            source = StoredSource(store, paths, entries)
        except StorageError as error:
            warn_of_cache_failure(store.folder.parent, error, reporter)
    return ImageDataset(source, dataset.labels, transform)


def _build_cache_plan(
    data: TrainingData,
    spec: PreprocessSpec,
    *,
    root: Path,
    shorter_side: int | None,
    options: ReadOptions,
    limit_bytes: int,
) -> CachePlan:
    eval_image_bytes = spec.input_size[1] * spec.input_size[2] * options.pixel_bytes
    train_bytes = (
        eval_image_bytes * len(data.train)
        if shorter_side is None
        else estimate_store_bytes(data.train.paths, shorter_side=shorter_side, options=options)
    )
    val_bytes = eval_image_bytes * len(data.val)
    plan = CachePlan(
        root=root,
        owner=str(data.root),
        shorter_side=shorter_side,
        spec=spec,
        options=options,
        num_bytes=train_bytes + val_bytes,
        new_bytes=0,
        limit_bytes=limit_bytes,
    )
    new_train = train_bytes * _compute_missing_fraction(plan, plan.train_tag, data.train.paths)
    new_val = val_bytes * _compute_missing_fraction(plan, plan.val_tag, data.val.paths)
    return replace(plan, new_bytes=round(new_train + new_val))


def _compute_missing_fraction(plan: CachePlan, tag: str, paths: Sequence[Path]) -> float:
    """Return the fraction of images that a store lacks, in [0, 1]; creates no store."""
    if not paths or not get_store_folder(plan.root, tag=tag, owner=plan.owner).is_dir():
        return 1.0
    try:
        store = PixelStore(plan.root, tag=tag, owner=plan.owner, options=plan.options)
        missing = store.find(read_file_stamps(paths))[:, 0] == NOT_STORED.start
    except StorageError:
        return 1.0
    return float(missing.mean())


def _find_limit_obstacle(plan: CachePlan, *, reserved_bytes: int) -> str:
    """Return why the limit of the cache forbids the plan; empty if it does not."""
    if plan.num_bytes + reserved_bytes <= plan.limit_bytes:
        return ""
    return (
        f"{format_bytes(plan.num_bytes)} of decoded images{_describe_activations(reserved_bytes)} "
        f"exceed cache.max_gb={plan.limit_bytes / 1e9:g}"
    )


def _find_space_obstacle(plan: CachePlan, *, reserved_bytes: int) -> str:
    """Return why there is not enough space on the disk for the plan; empty if there is."""
    free = _get_free_disk_bytes(plan.root)
    if plan.new_bytes and free - plan.new_bytes - reserved_bytes < _MIN_FREE_DISK_BYTES:
        return (
            f"{format_bytes(plan.new_bytes)} of decoded images"
            f"{_describe_activations(reserved_bytes)} do not fit into the {format_bytes(free)} "
            f"free at {plan.root}, of which {format_bytes(_MIN_FREE_DISK_BYTES)} stay free"
        )
    return ""


def _describe_activations(num_bytes: int) -> str:
    return f" beside {format_bytes(num_bytes)} of cached activations" if num_bytes else ""


def _get_free_disk_bytes(folder: Path) -> int:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free
