"""Time and memory of all steps before the first image is read, for a million images.

    uv run python scripts/benchmarks/scale.py --images 1000000

Creates a folder of empty files in classes, scans and splits it, writes and reads the manifest,
creates the dataset and draws an epoch, and prints the seconds and the peak resident memory of each
step. The files contain no images: reading is measured by `input_pipeline.py`.
"""

import resource
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def measure_step(name: str) -> Iterator[None]:
    """Print the seconds of the block and the peak memory of the process after it."""
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name:<28} {time.perf_counter() - start:8.1f} {peak:8.2f}", flush=True)


def make_files(root: Path, *, images: int, classes: int) -> None:
    """Create empty files, spread evenly over the classes."""
    for number in range(classes):
        folder = root / f"class {number:04}"
        folder.mkdir(parents=True)
        for image in range(number, images, classes):
            (folder / f"photo {image:08}.jpg").touch()


def main() -> None:
    """Create the files and run the steps."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        print(f"{options.images} images in {options.classes} classes")
        print(f"{'':<28} {'seconds':>8} {'peak GB':>8}")
        with measure_step("creating the files"):
            make_files(root, images=options.images, classes=options.classes)
        run_steps(root)


def run_steps(root: Path) -> None:
    """Time scan, split, manifest, dataset and sampler."""
    with measure_step("imports"):
        from finetune.data.dataset import ImageDataset
        from finetune.data.images.source import FileSource
        from finetune.data.manifest import build_manifest, format_manifest, read_manifest
        from finetune.data.samplers.epoch_sampler import EpochSampler
        from finetune.data.scan import scan
        from finetune.data.training_data import LabeledImages
        from finetune.data.transforms.eval_transform import IdentityTransform
        from finetune.types import Split
    with measure_step("scan"):
        scanned = scan(root)
    with measure_step("split"):
        manifest = build_manifest(
            scanned.root, scanned.samples, val_fraction=0.2, test_fraction=0.0, seed=0
        )
    with measure_step("write and read the manifest"):
        file = root.parent / "manifest.csv"
        file.write_text(format_manifest(manifest), encoding="utf-8")
        manifest = read_manifest(file, root=root)
    with measure_step("dataset"):
        images = LabeledImages.from_manifest(manifest, Split.TRAIN)
        transform = IdentityTransform((224, 224))
        dataset = ImageDataset(FileSource(images.paths), images.labels.tolist(), transform)
    with measure_step("draw an epoch"):
        sampler = EpochSampler(None, num_images=len(dataset), batch_size=128, seed=0)
        num_drawn = sum(1 for _ in sampler)
    print(f"{num_drawn} images drawn")


if __name__ == "__main__":
    main()
