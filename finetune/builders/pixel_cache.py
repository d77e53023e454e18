"""Cache of decoded images: whether, where and at what size."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config.resolved import ResolvedConfig
from finetune.data.cache.array_store import NOT_STORED, get_store_folder
from finetune.data.cache.eviction import (
    find_cache_failure,
    resolve_cache_root,
)
from finetune.data.cache.file_stamp import read_file_stamps
from finetune.data.cache.pixel_store import PixelStore
from finetune.data.cache.pixel_writer import (
    estimate_store_bytes,
)
from finetune.data.training_data import TrainingData
from finetune.data.transforms.eval_transform import Transform
from finetune.errors import ConfigError, StorageError
from finetune.types import PreprocessSpec, ReadOptions
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
        sample_bytes: Estimated size of the training images in the store of validation images, which
            are measured as these are and are not part of ``num_bytes``.
        fits_sample: Whether there is space for them, too; else every epoch decodes them.
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
    sample_bytes: int = 0
    fits_sample: bool = True

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
    train_eval_rows: NDArray[np.int64] | None = None,
    is_resumed: bool = False,
    reserved_bytes: int = 0,
) -> CacheChoice:
    """Decide whether images are decoded once or in every epoch.

    Training images that are only measured do not change the decision, as they must not change the
    pixels that train.

    Args:
        config: Resolved config.
        data: Images of the run.
        transform: Transform of the training images.
        spec: Preprocessing of the network.
        train_eval_rows: Training images that are measured as validation images are; None for none.
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
    if train_eval_rows is not None and shorter_side is not None:
        plan = _add_sample(plan, [data.train.paths[row] for row in train_eval_rows], reserved_bytes)
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


def _add_sample(plan: CachePlan, paths: Sequence[Path], reserved_bytes: int) -> CachePlan:
    """Return the plan with training images that are stored as validation images are, if they fit.

    Args:
        plan: Plan of the images that train and validate.
        paths: Files of the sample.
        reserved_bytes: Size of cached activations in the same folder.
    """
    _, height, width = plan.spec.input_size
    num_bytes = height * width * plan.options.pixel_bytes * len(paths)
    new_bytes = round(num_bytes * _compute_missing_fraction(plan, plan.val_tag, paths))
    wider = replace(
        plan, num_bytes=plan.num_bytes + num_bytes, new_bytes=plan.new_bytes + new_bytes
    )
    is_obstructed = _find_limit_obstacle(wider, reserved_bytes=reserved_bytes) or (
        _find_space_obstacle(wider, reserved_bytes=reserved_bytes)
    )
    if is_obstructed:
        return replace(plan, fits_sample=False)
    return replace(plan, sample_bytes=new_bytes)


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
