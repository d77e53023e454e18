"""The pipelines that are timed, from a folder of JPEG files to batches of training images.

Imports none of their libraries: each pipeline does when it is built.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Loader = Iterable[Any]  # of batches; one epoch each time it is gone through

SIZE_PX = 224
CACHED_PX = 379  # shorter side of what finetune stores for its default crops of SIZE_PX
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def finetune_cold(folder: Path, batch_size: int) -> Loader:
    """Return finetune's loader that reads the files, without a cache, with the tutorial's crops."""
    from finetune.data.images.source import FileSource

    return finetune_loader(FileSource(photos_in(folder)), tutorial_crops(), batch_size)


def finetune_cached(folder: Path, batch_size: int, *, preset: str | None, px: int) -> Loader:
    """Return finetune's loader over stored pixels, which this fills, at so many pixels a side.

    Args:
        folder: Of the photos.
        batch_size: Images a batch.
        preset: finetune's augmentation; None takes the tutorial's crops.
        px: Shorter side of the stored images.
    """
    from finetune.data.cache.pixel_store import PixelStore, StoredSource
    from finetune.data.cache.pixel_writer import fill_store, shrunk
    from finetune.data.images.decode import DEFAULT_MAX_PIXELS
    from finetune.data.transforms.presets import create_train_transform
    from finetune.types import PreprocessSpec, Reporter

    spec = PreprocessSpec((3, SIZE_PX, SIZE_PX), MEAN, STD)
    augment = tutorial_crops() if preset is None else train_transform(preset, spec=spec, seed=0)
    store = PixelStore(folder.parent / "stores", form=f"short-{px}", owner=str(folder))
    decode = partial(shrunk, shorter_side=px, max_pixels=DEFAULT_MAX_PIXELS)
    paths = photos_in(folder)
    places = fill_store(store, paths, decode, num_threads=1, reporter=Reporter())
    return finetune_loader(StoredSource(store, paths, places), augment, batch_size)


def finetune_loader(source: Any, transform: Any, batch_size: int) -> Loader:
    """Return finetune's loader over a source of pictures."""
    from finetune.data.dataset import ImageDataset, create_loader
    from finetune.data.samplers.epoch_sampler import EpochSampler

    count = len(source)
    sampler = EpochSampler(None, num_images=count, batch_size=batch_size, seed=0)
    dataset = ImageDataset(source, [0] * count, transform)
    return create_loader(dataset, batch_size=batch_size, num_workers=0, sampler=sampler)


def tutorial_crops() -> Any:
    """Return finetune's transform with the crops of the tutorial: 8% to 100% of the area, flips."""
    import albumentations as A

    from finetune.data.transforms.train_transform import TrainTransform

    size = (SIZE_PX, SIZE_PX)
    steps = A.Compose([A.RandomResizedCrop(size, scale=(0.08, 1.0)), A.HorizontalFlip()])
    return TrainTransform(steps, size=size, seed=0)


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of both classes."""
    return sorted(folder.glob("*/*.jpg"))


def torchvision_tutorial(folder: Path, batch_size: int) -> Loader:
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


def timm_loader(folder: Path, batch_size: int, *, color_jitter: float) -> Loader:
    """Return timm's training loader, with or without its jitter; the rest are its defaults."""
    import torch
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", root=str(folder)),
        (3, SIZE_PX, SIZE_PX),
        batch_size,
        is_training=True,
        color_jitter=color_jitter,
        num_workers=0,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )


def albumentations_usual(folder: Path, batch_size: int) -> Loader:
    """Return a loader with OpenCV and Albumentations, as tutorials write it."""
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    crop = A.RandomResizedCrop(size=(SIZE_PX, SIZE_PX))
    pipeline = A.Compose([crop, A.HorizontalFlip(p=0.5), A.Normalize(MEAN, STD), ToTensorV2()])
    dataset = ImageFolder(
        str(folder),
        loader=lambda file: cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB),
        transform=lambda image: pipeline(image=image)["image"],
    )
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=0)


def fastai_loader(folder: Path, batch_size: int, *, crop: str) -> Loader:
    """Return fastai's training loader with one item transform, a flip and its own normalising."""
    with warnings.catch_warnings():
        # fastai 2.8.12 has functions under torch.jit.script, which warns since it is deprecated
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
    return block.dataloaders(folder, bs=batch_size, num_workers=0, device=device).train


PIPELINES: dict[str, Callable[[Path, int], Loader]] = {
    "torchvision": torchvision_tutorial,
    "timm, jitter .4": partial(timm_loader, color_jitter=0.4),
    "timm, no jitter": partial(timm_loader, color_jitter=0.0),
    "albumentations": albumentations_usual,
    "fastai RandomResizedCrop": partial(fastai_loader, crop="RandomResizedCrop"),
    "fastai Resize": partial(fastai_loader, crop="Resize"),
    "finetune cold": finetune_cold,
    "finetune cached at 256": partial(finetune_cached, preset=None, px=256),
    f"finetune cached at {CACHED_PX}": partial(finetune_cached, preset=None, px=CACHED_PX),
    "finetune default (jitter)": partial(finetune_cached, preset="medium", px=CACHED_PX),
}


def images_of(batch: Any) -> Any:
    """Return the pixels of a batch."""
    return batch["image"] if isinstance(batch, dict) else batch[0]


def epoch(loader: Loader) -> int:
    """Return the number of images in one epoch."""
    return sum(len(images_of(batch)) for batch in loader)


def warm_up(loader: Loader) -> str:
    """Return the dtype of the pixels, after an epoch that is not timed."""
    for batch in loader:
        pixels = images_of(batch)
        assert set(pixels.shape[1:]) == {3, SIZE_PX}, pixels.shape
    return str(pixels.dtype).removeprefix("torch.")
