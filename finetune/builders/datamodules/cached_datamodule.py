"""Data module that reads from the cache of decoded images, after filling it."""

from functools import partial
from pathlib import Path

from finetune.builders.pixel_cache import CachePlan
from finetune.data.cache.eviction import check_cache_root, evict_to_fit, warn_of_cache_failure
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.data.cache.pixel_writer import (
    DecodeFn,
    DecodingSource,
    decode_resized,
    decode_transformed,
    fill_store,
)
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import ImageSource
from finetune.data.transforms.eval_transform import EvalTransform, IdentityTransform, Transform
from finetune.errors import StorageError
from finetune.system.host import count_available_cores
from finetune.training.datamodule import ImageDataModule
from finetune.types import Reporter
from finetune.units import format_bytes


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
    train_store, val_store, is_sample_stored = _open_stores(plan, reporter)
    train = _build_cached_dataset(
        datamodule.train_dataset, train_store, decode_train, train_transform, reporter
    )
    val = _build_cached_dataset(datamodule.val_dataset, val_store, decode_val, identity, reporter)
    sample, sample_store = datamodule.train_eval_dataset, val_store if is_sample_stored else None
    if sample is not None:
        sample = _build_cached_dataset(sample, sample_store, decode_val, identity, reporter)
    return ImageDataModule(
        train,
        val,
        train_eval_dataset=sample,
        sampling_schedule=datamodule.sampling_schedule,
        loader_options=datamodule.loader_options,
    )


def _open_stores(
    plan: CachePlan, reporter: Reporter
) -> tuple[PixelStore, PixelStore, bool] | tuple[None, None, bool]:
    """Return the stores of training and validation images; warn and return None without space.

    The third value is whether there is space for the training images that are only measured, too.
    """
    try:
        check_cache_root(plan.root)
        if plan.fits_on_disk:
            # opened before other stores are evicted, so that these are in use and kept
            stores = (
                PixelStore(plan.root, tag=plan.train_tag, owner=plan.owner, options=plan.options),
                PixelStore(plan.root, tag=plan.val_tag, owner=plan.owner, options=plan.options),
            )
            needed, limit = plan.new_bytes, plan.limit_bytes
            wanted = needed + plan.sample_bytes
            if plan.fits_sample and (
                evict_to_fit(plan.root, needed_bytes=wanted, limit_bytes=limit) or not wanted
            ):
                return *stores, True
            if evict_to_fit(plan.root, needed_bytes=needed, limit_bytes=limit) or not needed:
                return *stores, False
    except StorageError as error:
        warn_of_cache_failure(plan.root, error, reporter)
        return None, None, False
    reporter.warn(
        f"Not enough space at {plan.root} for {format_bytes(plan.new_bytes)} of decoded images "
        f"(cache.max_gb={plan.limit_bytes / 1e9:g}, other runs included): every epoch decodes them "
        f"again, to the same pixels. Free some space, or resume with data.cache=PATH."
    )
    return None, None, False


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
