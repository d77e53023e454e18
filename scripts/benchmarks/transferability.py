"""Do heads on earlier stages tell how much fine-tuning gains over a linear probe?

    uv run python scripts/benchmarks/transferability.py results.jsonl --folder waste=trashnet/ \
        --folder insects=hymenoptera/ --weights resnet18=resnet18.pth

For each folder, made variants of it and each network: `finetune fit` with its defaults, and the
linear probe alone, on the same images. A line of JSON has the accuracy and log loss of the head on
each stage (cross-validated), and test accuracy and log loss of the probe and of the shipped model.
A folder has class folders, or `train` and `test` (or `val`) with class folders. `--summary` prints
the gains of each pair, and by what the program says of the heads on earlier stages.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

import finetune
from finetune.config.load import parse_assignments
from finetune.types import Reporter
from scripts.benchmarks.lib.transferability_summary import format_pairs, format_summary

VARIANTS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "as they are": lambda image: image,
    "edges": lambda image: image.convert("L").filter(ImageFilter.FIND_EDGES).convert("RGB"),
    "false colours": lambda image: Image.merge("RGB", ImageOps.invert(image).split()[::-1]),
    "shuffled tiles": lambda image: shuffle_tiles(image),
}


def shuffle_tiles(image: Image.Image, *, count: int = 6) -> Image.Image:
    """Return an image whose square tiles changed places: textures without the shapes."""
    side = min(image.size) // count
    pixels = np.array(ImageOps.fit(image, (side * count, side * count)))
    tiles = pixels.reshape(count, side, count, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    tiles = tiles[np.random.default_rng(0).permutation(len(tiles))]
    rows = tiles.reshape(count, count, side, side, 3).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(side * count, side * count, 3))


class ProbeRecorder(Reporter):
    """Reporter that keeps the result of the linear probe."""

    def __init__(self) -> None:
        self.probe: dict[str, Any] = {}

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Keep the result."""
        self.probe = dict(result)


def write_folder(
    source: Path,
    target: Path,
    change: Callable[[Image.Image], Image.Image],
    *,
    num_train: int,
    num_test: int,
    seed: int = 0,
) -> None:
    """Write changed training and test images of each class, drawn by ``seed``."""
    train = source / "train" if (source / "train").is_dir() else source
    test = next((source / name for name in ("test", "val") if (source / name).is_dir()), source)
    for folder in sorted(path for path in train.iterdir() if path.is_dir()):
        files = sorted(folder.iterdir())
        random = np.random.default_rng(seed)
        drawn = [files[row] for row in random.permutation(len(files))]
        if test == source:
            parts = {"train": drawn[num_test:][:num_train], "test": drawn[:num_test]}
        else:
            others = sorted((test / folder.name).iterdir())
            order = random.permutation(len(others))
            parts = {
                "train": drawn[:num_train],
                "test": [others[row] for row in order[:num_test]],
            }
        for part, paths in parts.items():
            place = target / part / folder.name
            place.mkdir(parents=True)
            for path in paths:
                with Image.open(path) as image:
                    change(image.convert("RGB")).save(place / f"{path.stem}.png")


def run(folder: Path, backbone: str, weights: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the results of the probe and of fine-tuning on a folder."""
    row: dict[str, Any] = {}
    for name, unfreeze in (("probe", "linear_probe"), ("tuned", "auto")):
        recorder = ProbeRecorder()
        start = time.process_time()
        result = finetune.fit(
            folder,
            backbone=backbone,
            weights=weights,
            image_size=args.image_size,
            unfreeze=unfreeze,
            seed=args.seed,
            config=parse_assignments(args.set),
            output=folder.parent / f"run-{backbone}-{name}",
            reporter=recorder,
        )
        metrics = result.metrics["test"]
        row[name] = {key: metrics[key] for key in ("accuracy", "loss")}
        row[f"{name}_cpu_seconds"] = round(time.process_time() - start, 1)
        row["stages"] = recorder.probe["stages"]
        shutil.rmtree(result.run_dir)
    return row


def main() -> None:
    """Run what is not in the results file yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--variant", action="append", choices=VARIANTS, default=[])
    parser.add_argument("--weights", action="append", default=[], metavar="BACKBONE=FILE")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--num-train", type=int, default=50, help="images of a class")
    parser.add_argument("--num-test", type=int, default=60, help="images of a class")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn images and of fit")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--summary", action="store_true", help="print what the results say")
    args = parser.parse_args()
    args.results.touch()
    done = [json.loads(line) for line in args.results.read_text().splitlines()]
    if args.summary:
        print(format_pairs(done), "", format_summary(done), sep="\n")
        return
    for folder_text in args.folder:
        name, _, source = folder_text.partition("=")
        for variant in args.variant or ["as they are"]:
            with tempfile.TemporaryDirectory() as place:
                images = Path(place) / "images"
                for weights_text in args.weights:
                    backbone, _, weights = weights_text.partition("=")
                    key = {
                        "images": name,
                        "variant": variant,
                        "backbone": backbone,
                        "seed": args.seed,
                    }
                    if any(key.items() <= row.items() for row in done):
                        continue
                    if not images.exists():
                        write_folder(
                            Path(source),
                            images,
                            VARIANTS[variant],
                            num_train=args.num_train,
                            num_test=args.num_test,
                            seed=args.seed,
                        )
                    row = {**key, **run(images, backbone, weights, args)}
                    with args.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
