"""Timed pipelines from a folder of JPEG files to batches of training images.

Each pipeline imports its library when it is built.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Loader = Iterable[Any]  # batches of one epoch per iteration

SIZE_PX = 224
CACHED_PX = 379  # shorter side of cached images for default crops of SIZE_PX
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def create_finetune_file_loader(folder: Path, batch_size: int) -> Loader:
    """Return finetune's loader of files, without a cache, with the crops of the tutorial."""
    from finetune.data.images.source import FileSource

    return _create_finetune_loader(
        FileSource(list_photos(folder)), create_tutorial_crops(), batch_size
    )


def create_finetune_cached_loader(
    folder: Path, batch_size: int, *, preset: str | None, px: int
) -> Loader:
    """Return finetune's loader of cached pixels, after filling the cache.

    Args:
        folder: Folder of the photos.
        batch_size: Images per batch.
        preset: Augmentation preset of finetune; None takes the crops of the tutorial.
        px: Shorter side of the cached images.
    """
    from finetune.data.cache.pixel_store import PixelStore, StoredSource
    from finetune.data.cache.pixel_writer import decode_resized, fill_store
    from finetune.data.transforms.presets import create_train_transform
    from finetune.types import DEFAULT_READ_OPTIONS, PreprocessSpec, Reporter

    spec = PreprocessSpec((3, SIZE_PX, SIZE_PX), MEAN, STD)
    transform = (
        create_tutorial_crops()
        if preset is None
        else create_train_transform(preset, spec=spec, seed=0)
    )
    store = PixelStore(folder.parent / "stores", tag=f"short-{px}", owner=str(folder))
    decode = partial(decode_resized, shorter_side=px, options=DEFAULT_READ_OPTIONS)
    paths = list_photos(folder)
    locations = fill_store(store, paths, decode, num_threads=1, reporter=Reporter())
    return _create_finetune_loader(StoredSource(store, paths, locations), transform, batch_size)


def _create_finetune_loader(source: Any, transform: Any, batch_size: int) -> Loader:
    """Return finetune's loader of an image source."""
    from finetune.data.dataset import ImageDataset, create_loader
    from finetune.data.samplers.epoch_sampler import EpochSampler

    count = len(source)
    sampler = EpochSampler(None, num_images=count, batch_size=batch_size, seed=0)
    dataset = ImageDataset(source, [0] * count, transform)
    return create_loader(dataset, batch_size=batch_size, num_workers=0, sampler=sampler)


def create_tutorial_crops() -> Any:
    """Return finetune's transform with the tutorial's crops (8% to 100% of the area) and flips."""
    import albumentations as A  # noqa: N812 - the library's own convention

    from finetune.data.transforms.train_transform import TrainTransform

    size = (SIZE_PX, SIZE_PX)
    steps = A.Compose([A.RandomResizedCrop(size, scale=(0.08, 1.0)), A.HorizontalFlip()])
    return TrainTransform(steps, size=size, seed=0)


def list_photos(folder: Path) -> list[Path]:
    """Return the photos of both classes."""
    return sorted(folder.glob("*/*.jpg"))


def create_torchvision_loader(folder: Path, batch_size: int) -> Loader:
    """Return the loader of torchvision's training examples."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomResizedCrop(SIZE_PX, antialias=True),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    dataset = datasets.ImageFolder(folder, transforms.Compose(steps))
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=0)


def create_timm_loader(folder: Path, batch_size: int, *, color_jitter: float) -> Loader:
    """Return timm's training loader with its defaults, with or without colour jitter."""
    import torch
    from timm.data import create_dataset, create_loader  # type: ignore[attr-defined]

    loader: Loader = create_loader(
        create_dataset("", root=str(folder)),
        (3, SIZE_PX, SIZE_PX),
        batch_size,
        is_training=True,
        color_jitter=color_jitter,
        num_workers=0,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    return loader


def create_albumentations_loader(folder: Path, batch_size: int) -> Loader:
    """Return a loader with OpenCV and Albumentations, as tutorials write it."""
    import albumentations as A  # noqa: N812 - the library's own convention
    import cv2
    from albumentations.pytorch import ToTensorV2
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    def read_rgb(file: str) -> Any:
        pixels: Any = cv2.imread(file)
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    crop = A.RandomResizedCrop(size=(SIZE_PX, SIZE_PX))
    pipeline = A.Compose([crop, A.HorizontalFlip(p=0.5), A.Normalize(MEAN, STD), ToTensorV2()])
    dataset = ImageFolder(
        str(folder),
        loader=read_rgb,
        transform=lambda image: pipeline(image=image)["image"],
    )
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=0)


def create_fastai_loader(folder: Path, batch_size: int, *, crop: str) -> Loader:
    """Return fastai's training loader with one item transform, a flip and its normalisation."""
    with warnings.catch_warnings():
        # fastai 2.8.12 uses torch.jit.script, which is deprecated and warns
        message = "`torch.jit.script` is deprecated"
        warnings.filterwarnings("ignore", message, category=FutureWarning)
        from fastai.vision import all as vision

    block = vision.DataBlock(
        blocks=(vision.ImageBlock, vision.CategoryBlock),
        get_items=vision.get_image_files,
        get_y=vision.parent_label,
        splitter=vision.IndexSplitter([]),
        item_tfms=[getattr(vision, crop)(SIZE_PX), vision.FlipItem()],
        batch_tfms=vision.Normalize.from_stats(MEAN, STD, cuda=False),
    )
    device = vision.torch.device("cpu")
    loaders = block.dataloaders(folder, bs=batch_size, num_workers=0, device=device)
    train: Loader = loaders.train
    return train


PIPELINES: dict[str, Callable[[Path, int], Loader]] = {
    "torchvision": create_torchvision_loader,
    "timm, jitter .4": partial(create_timm_loader, color_jitter=0.4),
    "timm, no jitter": partial(create_timm_loader, color_jitter=0.0),
    "albumentations": create_albumentations_loader,
    "fastai RandomResizedCrop": partial(create_fastai_loader, crop="RandomResizedCrop"),
    "fastai Resize": partial(create_fastai_loader, crop="Resize"),
    "finetune cold": create_finetune_file_loader,
    "finetune cached at 256": partial(create_finetune_cached_loader, preset=None, px=256),
    f"finetune cached at {CACHED_PX}": partial(
        create_finetune_cached_loader, preset=None, px=CACHED_PX
    ),
    "finetune default (jitter)": partial(
        create_finetune_cached_loader, preset="medium", px=CACHED_PX
    ),
}


def get_images(batch: Any) -> Any:
    """Return the pixels of a batch."""
    return batch["image"] if isinstance(batch, dict) else batch[0]


def run_epoch(loader: Loader) -> int:
    """Run one epoch and return its number of images."""
    return sum(len(get_images(batch)) for batch in loader)


def warm_up(loader: Loader) -> str:
    """Run an epoch that is not timed and return the dtype of the pixels."""
    for batch in loader:
        pixels = get_images(batch)
        assert set(pixels.shape[1:]) == {3, SIZE_PX}, pixels.shape
    return str(pixels.dtype).removeprefix("torch.")
