"""Measures time and memory of everything before the first image, for very many images.

    uv run python scripts/benchmarks/scale.py --images 1000000

Makes a folder of empty files in classes, scans it, splits it, writes and reads the manifest, makes
the dataset and draws an epoch, and prints seconds and the peak of resident memory after each step.
The files hold no image: what reads them is measured by `input_pipeline.py`.
"""

import resource
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print the seconds of a block and the peak memory of the process after it."""
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name:<28} {time.perf_counter() - start:8.1f} {peak:8.2f}", flush=True)


def make_files(root: Path, *, images: int, classes: int) -> None:
    """Make empty files, as evenly in the classes as it goes."""
    for number in range(classes):
        folder = root / f"class {number:04}"
        folder.mkdir(parents=True)
        for image in range(number, images, classes):
            (folder / f"photo {image:08}.jpg").touch()


def main() -> None:
    """Go through the steps."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        print(f"{options.images} images in {options.classes} classes")
        print(f"{'':<28} {'seconds':>8} {'peak GB':>8}")
        with step("making the files"):
            make_files(root, images=options.images, classes=options.classes)
        go_through(root)


def go_through(root: Path) -> None:
    """Scan, split, write, read and draw, each timed."""
    with step("imports"):
        from finetune.data.dataset import ImageDataset
        from finetune.data.images.source import FileSource
        from finetune.data.manifest import build_manifest, read_manifest, write_manifest
        from finetune.data.samplers.epoch_sampler import EpochSampler
        from finetune.data.scan import scan
        from finetune.data.transforms.eval_transform import IdentityTransform
        from finetune.types import Split
    with step("scan"):
        found = scan(root)
    with step("split"):
        manifest = build_manifest(
            found.root, found.samples, val_fraction=0.2, test_fraction=0.0, seed=0
        )
    with step("write and read the manifest"):
        file = root.parent / "manifest.csv"
        file.write_text(write_manifest(manifest), encoding="utf-8")
        manifest = read_manifest(file, root=root)
    with step("dataset"):
        samples = manifest.of(Split.TRAIN)
        source = FileSource(manifest.paths(samples))
        dataset = ImageDataset(source, manifest.labels(samples), AsStored((224, 224)))
    with step("draw an epoch"):
        sampler = EpochSampler(None, num_images=len(dataset), batch_size=128, seed=0)
        drawn = sum(1 for _ in sampler)
    print(f"{drawn} images drawn")


if __name__ == "__main__":
    main()
