"""Times what a user waits for besides the work: help, a typo, imports, and one prediction.

    uv run python scripts/benchmarks/startup.py --runs 7

Prints median, fastest and slowest wall time of whole processes, in seconds, and how a prediction of
one image compares with the least that it could cost: importing torch and timm, creating the same
network and one forward pass. The ratio is taken run by run.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FINETUNE = [sys.executable, "-m", "finetune"]
PREDICT, BARE = "finetune predict, one image", "torch, timm, one forward"
BARE_CODE = """
import timm, torch
network = timm.create_model("resnet18", num_classes=2).eval()
with torch.inference_mode():
    network(torch.zeros(1, 3, 224, 224))
"""
MAKE_BUNDLE = """
import sys
from pathlib import Path
from PIL import Image
from finetune.bundle.model_card import ModelCard
from finetune.bundle.bundle import save_bundle
from finetune.models.backbone import create_network
folder = Path(sys.argv[1])
made = create_network("resnet18", num_classes=2, weights="random")
card = Card(backbone="resnet18", model_args={}, classes=("a", "b"), spec=made.spec, facts={})
save_bundle(made.module, card, folder / "bundle")
Image.effect_mandelbrot((500, 375), (-2, -1.5, 1, 1.5), 100).convert("RGB").save(folder / "a.jpg")
"""


def commands(folder: Path) -> Mapping[str, Sequence[str]]:
    """Return what is timed; ``folder`` holds a bundle and an image."""
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "finetune --help": [*FINETUNE, "--help"],
        "finetune fit --help": [*FINETUNE, "fit", "--help"],
        "finetune fit with a config typo": [*FINETUNE, "fit", ".", "optim.lrr=1"],
        "import torch, timm": [sys.executable, "-c", "import torch, timm"],
        "import finetune.commands.fit.fit": [
            sys.executable,
            "-c",
            "import finetune.commands.fit.fit",
        ],
        BARE: [sys.executable, "-c", BARE_CODE],
        PREDICT: [*FINETUNE, "predict", str(folder / "bundle"), str(folder / "a.jpg")],
    }


def seconds(command: Sequence[str]) -> float:
    """Return the wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Run every command in turns, so that a busy moment meets all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MAKE_BUNDLE, folder], check=True)
        timed = commands(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in timed}
        for command in timed.values():
            seconds(command)  # fills the page cache
        for _ in range(runs):
            for name, command in timed.items():
                times[name].append(seconds(command))
    print_table(times)


def print_table(times: Mapping[str, Sequence[float]]) -> None:
    """Print seconds, and the ratio of a prediction to the least that it could cost."""
    print(f"{'seconds':34} {'median':>7} {'min':>7} {'max':>7}")
    for name, values in times.items():
        print(f"{name:34} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f}")
    ratios = [ours / bare for ours, bare in zip(times[PREDICT], times[BARE], strict=True)]
    shown = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{'prediction / bare forward':34} {shown[0]:7.2f} {shown[1]:7.2f} {shown[2]:7.2f}")


if __name__ == "__main__":
    main()
