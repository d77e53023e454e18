"""Start-up times: help, a typo in the config, imports, and one prediction.

    uv run python scripts/benchmarks/startup.py --runs 7

Prints the median, minimum and maximum wall time of whole processes in seconds, and the ratio of a
prediction of one image to its lower bound: importing torch and timm, creating the same network and
one forward pass. The ratio is computed per run.
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
PREDICT, MINIMUM = "finetune predict, one image", "torch, timm, one forward"
MINIMUM_CODE = """
import timm, torch
network = timm.create_model("resnet18", num_classes=2).eval()
with torch.inference_mode():
    network(torch.zeros(1, 3, 224, 224))
"""
CREATE_BUNDLE = """
import sys
from pathlib import Path
from PIL import Image
from finetune.bundle.model_card import ModelCard
from finetune.bundle.bundle import save_bundle
from finetune.models.backbone import create_network
folder = Path(sys.argv[1])
network = create_network("resnet18", num_classes=2, weights="random")
card = ModelCard("resnet18", model_args={}, classes=("a", "b"), spec=network.spec, facts={})
save_bundle(network.module, card, folder / "bundle")
Image.effect_mandelbrot((500, 375), (-2, -1.5, 1, 1.5), 100).convert("RGB").save(folder / "a.jpg")
"""


def build_commands(folder: Path) -> Mapping[str, Sequence[str]]:
    """Return the timed commands; ``folder`` contains a bundle and an image."""
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
        MINIMUM: [sys.executable, "-c", MINIMUM_CODE],
        PREDICT: [*FINETUNE, "predict", str(folder / "bundle"), str(folder / "a.jpg")],
    }


def time_command(command: Sequence[str]) -> float:
    """Return the wall time of one process in seconds."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Run the commands in turns, so that the load of the machine affects all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", CREATE_BUNDLE, folder], check=True)
        commands = build_commands(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in commands}
        for command in commands.values():
            time_command(command)  # fills the page cache
        for _ in range(runs):
            for name, command in commands.items():
                times[name].append(time_command(command))
    print_table(times)


def print_table(times: Mapping[str, Sequence[float]]) -> None:
    """Print the times, and the ratio of a prediction to its lower bound."""
    print(f"{'seconds':34} {'median':>7} {'min':>7} {'max':>7}")
    for name, values in times.items():
        print(f"{name:34} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f}")
    ratios = [a / b for a, b in zip(times[PREDICT], times[MINIMUM], strict=True)]
    median, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{'prediction / lower bound':34} {median:7.2f} {low:7.2f} {high:7.2f}")


if __name__ == "__main__":
    main()
