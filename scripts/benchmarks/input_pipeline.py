"""Times input pipelines on one core, from JPEG files to batches of training images of 224 px.

    uv run --with fastai --with simplejpeg python scripts/benchmarks/input_pipeline.py

Prints three tables for each size of photo: decoding alone, each decoder in a fresh process;
whole pipelines, all through torch's DataLoader without workers; and how near a crop comes to a
full decode with antialiased resizing. Pipelines take turns round by round, after one epoch that is
not timed. Times are milliseconds per image; "x" is how many times less than the first row's in the
same round: the median, and the least and most of the rounds. User time stands apart because at
12 megapixels the kernel's page faults can take as long as the work. What needs a library that is
not installed is skipped.
"""

import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import tempfile
import textwrap
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from made_photos import make_photos, mean_bytes, photo_bytes_per_px
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, upper, right, lower
Loader = Iterable[Any]  # of batches; one epoch each time it is gone through

SIZE_PX = 224
BATCH_SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPARSE_BYTES_PER_PX, SPARSE_FROM_PX = 0.1, 4_000_000  # soft photos of a camera, decoding only
PRELOADED = "concurrent.futures.process cv2 numpy.typing PIL.Image simplejpeg torchvision.io"
LIBRARIES = "torch torchvision timm pillow opencv-python-headless albumentations fastai simplejpeg"


# --- pipelines ----------------------------------------------------------------------------------


def finetune_cold(folder: Path, batch_size: int) -> Loader:
    """Return finetune's loader that reads the files, without a cache, with the tutorial's crops."""
    from finetune.data.source import FileSource

    return finetune_loader(FileSource(photos_in(folder)), tutorial_crops(), batch_size)


def finetune_cached(folder: Path, batch_size: int, *, preset: str | None, px: int) -> Loader:
    """Return finetune's loader over stored pixels, which this fills, at so many pixels a side.

    Args:
        folder: Of the photos.
        batch_size: Images a batch.
        preset: finetune's augmentation; None takes the tutorial's crops.
        px: Shorter side of the stored images.
    """
    from finetune.data.augment import train_transform
    from finetune.data.cache import PixelStore, StoredSource
    from finetune.data.fill import fill_store, shrunk
    from finetune.types import PreprocessSpec, Reporter

    spec = PreprocessSpec((3, SIZE_PX, SIZE_PX), MEAN, STD)
    augment = tutorial_crops() if preset is None else train_transform(preset, spec=spec, seed=0)
    store = PixelStore(folder.parent / "stores", form=f"short-{px}", owner=str(folder))
    decode = partial(shrunk, shorter_side=px, max_pixels=178_000_000)
    paths = photos_in(folder)
    places = fill_store(store, paths, decode, num_threads=1, reporter=Reporter())
    return finetune_loader(StoredSource(store, paths, places), augment, batch_size)


def finetune_loader(source: Any, transform: Any, batch_size: int) -> Loader:
    """Return finetune's loader over a source of pictures."""
    from finetune.data.dataset import ImageDataset, create_loader
    from finetune.data.sampler import EpochSampler

    count = len(source)
    sampler = EpochSampler(None, num_images=count, batch_size=batch_size, seed=0)
    dataset = ImageDataset(source, [0] * count, transform)
    return create_loader(dataset, batch_size=batch_size, num_workers=0, sampler=sampler)


def tutorial_crops() -> Any:
    """Return finetune's transform with the crops of the tutorial: 8% to 100% of the area, flips."""
    import albumentations as A  # noqa: N812 - the name that its own documentation uses

    from finetune.data.transform import TrainTransform

    size = (SIZE_PX, SIZE_PX)
    steps = A.Compose([A.RandomResizedCrop(size, scale=(0.08, 1.0)), A.HorizontalFlip()])
    return TrainTransform(steps, size=size, seed=0)


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of both classes."""
    return sorted(folder.glob("*/*.jpg"))


def finetune_crop(file: Path, box: Box) -> Pixels:
    """Return finetune's ``SIZE_PX`` crop of one box of a file, uint8, shape (S, S, 3)."""
    from finetune.data.picture import open_picture

    return open_picture(file).crop(box, (SIZE_PX, SIZE_PX))


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
    import albumentations as A  # noqa: N812  the library's own convention
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
    "finetune cached at 379": partial(finetune_cached, preset=None, px=379),
    "finetune default (jitter)": partial(finetune_cached, preset="medium", px=379),
}


# --- decoders -----------------------------------------------------------------------------------


def decode_pil(file: Path) -> Pixels:
    """Return the pixels as most datasets read them."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def decode_cv2(file: Path) -> Pixels:
    """Return the pixels as OpenCV orders them, blue first."""
    import cv2

    return cv2.imread(str(file), cv2.IMREAD_COLOR)


def decode_torchvision(file: Path) -> Any:
    """Return the pixels as a tensor, shape (3, H, W)."""
    from torchvision import io as images

    return images.decode_jpeg(images.read_file(str(file)), mode=images.ImageReadMode.RGB)


def decode_simplejpeg(file: Path) -> Pixels:
    """Return the pixels."""
    import simplejpeg

    return simplejpeg.decode_jpeg(file.read_bytes())


def decode_eighth(file: Path) -> Pixels:
    """Return an eighth of each side, the least that a JPEG can be decoded to."""
    import simplejpeg

    return simplejpeg.decode_jpeg(file.read_bytes(), min_height=1, min_width=1, min_factor=8)


DECODERS: dict[str, Callable[[Path], Any]] = {
    "PIL convert to numpy": decode_pil,
    "cv2.imread": decode_cv2,
    "torchvision decode_jpeg": decode_torchvision,
    "simplejpeg": decode_simplejpeg,
    "simplejpeg 1/8": decode_eighth,
}


# --- timing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one image took, in milliseconds."""

    wall: float
    user: float
    system: float

    @property
    def cpu(self) -> float:
        """User and system time together."""
        return self.user + self.system


Costs = dict[str, list[Cost]]  # one a round


def measure(work: Callable[[], int], least_seconds: float) -> Cost:
    """Return the cost per image of work that returns their number, repeated if it is short."""
    gc.collect()
    before, start, images = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while time.perf_counter() - start < least_seconds:
        images += work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    seconds = wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Cost(*(1000 * value / images for value in seconds))


def take_turns(contenders: dict[str, Callable[[], Cost]], rounds: int) -> Costs:
    """Return each contender's costs; every round starts with another of them."""
    costs: Costs = {name: [] for name in contenders}
    names = list(contenders)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            costs[name].append(contenders[name]())
    return costs


@contextmanager
def skipping(name: str, skipped: dict[str, str]) -> Iterator[None]:
    """Note in ``skipped`` why something cannot run here, instead of ending the benchmark."""
    try:
        yield
    except ModuleNotFoundError as error:
        skipped[name] = f"{error}: run with `uv run --with {error.name}`"
    except NotImplementedError as error:
        skipped[name] = str(error)


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


def decode_all(decode: Callable[[Path], Any], files: list[Path], least_seconds: float) -> Cost:
    """Return the cost of decoding some files, one after another."""
    decode(files[0])  # imports its library
    return measure(lambda: len([decode(file).shape for file in files]), least_seconds)


def in_fresh_process(work: Callable[[], Cost]) -> Cost:
    """Return what work costs in a new process, whose memory nothing has used before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED.split())
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work).result()


# --- fidelity -----------------------------------------------------------------------------------


def psnr(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB; 98 dB stands for equal pixels."""
    error = np.mean(np.square(np.float64(a) - np.float64(b)))
    return float(10 * np.log10(255**2 / max(error, 1e-5)))


def random_box(size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Return a box as RandomResizedCrop draws them: 0.08 to 1 of the area, ratio 3/4 to 4/3."""
    while True:
        area = rng.uniform(0.08, 1) * size[0] * size[1]
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if width <= size[0] and height <= size[1]:
            left, upper = rng.integers(0, (size[0] - width + 1, size[1] - height + 1))
            return int(left), int(upper), int(left) + width, int(upper) + height


def cv2_crop(pixels: Pixels, box: Box) -> Pixels:
    """Return a box of BGR pixels as RGB, resized without antialiasing."""
    import cv2

    left, upper, right, lower = box
    crop = cv2.resize(pixels[upper:lower, left:right], (SIZE_PX, SIZE_PX))
    return cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)


def compare_crops(files: list[Path], boxes: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the PSNR of every crop to Pillow's of the same box; ``boxes`` per file."""
    from PIL import Image

    from finetune.data.fill import shrunk
    from finetune.data.picture import ArrayPicture

    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = {}
    for file in files:
        full, full_bgr = Image.fromarray(decode_pil(file)), decode_cv2(file)
        stored = shrunk(file, shorter_side=379, max_pixels=178_000_000)
        kept = ArrayPicture(stored.pixels, height=full.height, width=full.width)
        for drawn in (random_box(full.size, rng) for _ in range(boxes)):
            # at 1/8 an edge of a crop lies on a multiple of 8 pixels: there it is compared, too
            for name, box in (("", drawn), (", edges on multiples of 8", on_grid(drawn))):
                resized = full.crop(box).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
                crops = {
                    "cv2 full + INTER_LINEAR": cv2_crop(full_bgr, box),
                    "finetune cold": finetune_crop(file, box),
                    "finetune cached at 379": kept.crop(box, (SIZE_PX, SIZE_PX)),
                }
                for label, crop in crops.items():
                    found = psnr(crop, np.asarray(resized))
                    scores.setdefault(label + name, []).append(found)
    return scores, {}


def on_grid(box: Box) -> Box:
    """Return a box with its edges on multiples of 8 pixels."""
    left, upper, right, lower = (value // 8 * 8 for value in box)
    return left, upper, max(right, left + 8), max(lower, upper + 8)


# --- tables -------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Return a number with three digits that matter, and at most three decimals."""
    decimals = 2 - int(np.floor(np.log10(max(value, 1e-9))))
    return f"{value:.{min(3, max(0, decimals))}f}"


def spread(values: Sequence[float]) -> str:
    """Return the median, with the least and the most."""
    low, high = figure(min(values)), figure(max(values))
    return f"{figure(statistics.median(values)):>5} {f'[{low}-{high}]':13}"


def print_costs(title: str, costs: Costs, notes: dict[str, str], skipped: dict[str, str]) -> None:
    """Print what each contender took, and how many times less than the first one."""
    print(f"\n{title:25} {'wall':>6} {'user':>6} {'sys':>6}  {'x user':20}x user+sys")
    baseline = next(iter(costs.values()))
    for name, rows in costs.items():
        wall, user, system = (
            figure(statistics.median(values))
            for values in zip(*((row.wall, row.user, row.system) for row in rows), strict=True)
        )
        on_user = [first.user / row.user for first, row in zip(baseline, rows, strict=True)]
        on_cpu = [first.cpu / row.cpu for first, row in zip(baseline, rows, strict=True)]
        line = f"{name:25} {wall:>6} {user:>6} {system:>6} {spread(on_user)} {spread(on_cpu)}"
        print(f"{line} {notes.get(name, '')}".rstrip())
    print_skipped(skipped)


def print_scores(scores: dict[str, list[float]], skipped: dict[str, str]) -> None:
    """Print how near the crops come to Pillow's."""
    print(f"\n{'crops, dB to PIL antialiased':30} {'median [least-most]':20} boxes")
    for name, values in scores.items():
        if values:
            print(f"{name:30} {spread(values):20} {len(values)}")
    print_skipped(skipped)


def print_skipped(skipped: dict[str, str]) -> None:
    """Print what is missing from a table, and why."""
    for name, reason in skipped.items():
        print(f"{name:25} skipped: {reason}")


# --- parts --------------------------------------------------------------------------------------


def decode_part(files: list[Path], options: Namespace) -> dict[str, Any]:
    """Time and print the decoders over some files."""
    contenders, skipped = {}, {}
    for name, decode in DECODERS.items():
        with skipping(name, skipped):
            decode(files[0])
            work = partial(decode_all, decode, files, options.least_seconds)
            contenders[name] = partial(in_fresh_process, work)
    costs = take_turns(contenders, options.rounds)
    print_costs("decoding, ms per image", costs, {}, skipped)
    return as_json(costs)


def pipelines_part(files: list[Path], options: Namespace) -> dict[str, Any]:
    """Time and print the pipelines over the folder of some files."""
    contenders, notes, skipped = {}, {}, {}
    for name, build in PIPELINES.items():
        with skipping(name, skipped):
            loader = build(files[0].parents[1], min(BATCH_SIZE, len(files)))
            notes[name] = warm_up(loader)
            contenders[name] = partial(measure, partial(epoch, loader), options.least_seconds)
    costs = take_turns(contenders, options.rounds)
    print_costs("pipelines, ms per image", costs, notes, skipped)
    return as_json(costs)


def fidelity_part(files: list[Path], options: Namespace) -> dict[str, Any]:
    """Compare and print the crops of some files."""
    scores, skipped = compare_crops(files[: options.fidelity_files], options.boxes)
    print_scores(scores, skipped)
    return dict(scores)


def as_json(costs: Costs) -> dict[str, Any]:
    """Return the costs as plain containers."""
    return {name: [asdict(row) for row in rows] for name, rows in costs.items()}


PARTS: dict[str, Callable[[list[Path], Namespace], dict[str, Any]]] = {
    "decode": decode_part,
    "pipelines": pipelines_part,
    "fidelity": fidelity_part,
}


# --- command ------------------------------------------------------------------------------------


def use_one_core() -> str:
    """Hold this process and those it starts to one core, and return which."""
    core = "not pinned"
    if hasattr(os, "sched_setaffinity"):
        last = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {last})
        core = f"pinned to core {last}"
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    return core


def environment() -> dict[str, str]:
    """Return what the figures depend on: processor, allocator and versions."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    malloc = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("MALLOC_", "LD_PRELOAD"))]
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    versions = [f"{name} {installed.get(name, '-')}" for name in LIBRARIES.split()]
    return {
        "processor": f"{(names or [platform.processor()])[0]}, {use_one_core()}",
        "load": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "malloc": " ".join(malloc) or "defaults",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def parse_options() -> Namespace:
    """Return the command's options."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and rounds, to try it")
    parser.add_argument("--images", type=int, help="photos of each size; default 96, 64 or 16")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--sizes", default="500x375,1024x768,4000x3000")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="where every single figure goes")
    options = parser.parse_args()
    options.least_seconds = 0.05 if options.quick else 0.3
    options.fidelity_files, options.boxes = (2, 2) if options.quick else (8, 6)
    if options.rounds is None:
        options.rounds = 2 if options.quick else 5
    if options.images is None and options.quick:
        options.images = 4
    return options


def usual_images(width: int, height: int) -> int:
    """Return how many photos of one size keep the whole run below six minutes."""
    megapixels = width * height / 1e6
    return 96 if megapixels < 0.5 else 64 if megapixels < 4 else 16


def run_photos(
    size: tuple[int, int], bytes_per_px: float, parts: Iterable[str], options: Namespace
) -> dict[str, Any]:
    """Make photos of one size and density, and run parts of the benchmark on them."""
    count = usual_images(*size) if options.images is None else options.images
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), size, count=count, bytes_per_px=bytes_per_px)
        photos = {"size": size, "count": count, "mean_bytes": mean_bytes(files)}
        density = photos["mean_bytes"] / size[0] / size[1]
        title = f"{size[0]}x{size[1]}: {count} photos of {photos['mean_bytes'] / 1000:.0f} kB"
        print(f"\n=== {title} ({density:.2f} bytes per px)")
        return {"photos": photos, **{part: PARTS[part](files, options) for part in parts}}


def main() -> None:
    """Run the parts on the photos of every size, and on sparse ones where decoding matters."""
    options = parse_options()
    report: dict[str, Any] = {"environment": environment(), "runs": []}
    for name, value in report["environment"].items():
        print(textwrap.fill(f"{name}: {value}", 90, subsequent_indent="  "))
    for text in options.sizes.split(","):
        width, height = map(int, text.split("x"))
        usual = photo_bytes_per_px(width, height)
        report["runs"].append(run_photos((width, height), usual, options.parts, options))
        if "decode" in options.parts and width * height > SPARSE_FROM_PX:
            sparse = run_photos((width, height), SPARSE_BYTES_PER_PX, ["decode"], options)
            report["runs"].append(sparse)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
