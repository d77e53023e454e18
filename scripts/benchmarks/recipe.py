"""Accuracy and time of finetune with its defaults, compared with its peers with theirs.

    uv run --with fastai --with transformers --with accelerate \
        python scripts/benchmarks/recipe.py photos/ --weights resnet18.pth --keep results.json

All tools get the same weights file, the same training and validation images and the same cores, and
use their own recommended settings (peers/*.py name the source). Each run is a process, including
imports, from files to predictions of the validation images; finetune starts with empty caches. A
folder without train and val is split 80/20 per class, once for all tools.

Each result is written to --keep at once, and stored results are not computed again, so that a long
comparison can be continued, or extended by seeds and tools. Prints accuracy, balanced accuracy and
macro F1 (means over the seeds), wall and CPU time (medians) with minimum and maximum, and the
ratios of each peer to finetune.

finetune, Hugging Face and the tutorial keep the epoch that is best on the validation images; fastai
and timm's loop keep the last one, as is their default.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.model_selection import train_test_split

PEERS = Path(__file__).parent / "peers"
TOOLS: dict[str, list[Path | str]] = {
    "finetune": [],
    "fastai": [PEERS / "fastai_.py"],
    "timm": [PEERS / "timm_loop.py"],
    "hf": [PEERS / "hf_trainer.py"],
    "tutorial": [PEERS / "tutorial.py"],
    "tutorial-frozen": [PEERS / "tutorial.py", "--frozen"],
}
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def split_folder(data: Path, into: Path) -> Path:
    """Return a folder with train and val: the given one, or one of links to its images."""
    if (data / "train").is_dir() and (data / "val").is_dir():
        return data.resolve()
    files = sorted(f for f in data.resolve().rglob("*") if f.suffix.lower() in IMAGES)
    labels = [file.parent.name for file in files]
    parts = train_test_split(files, test_size=0.2, random_state=0, stratify=labels)
    for name, part in zip(("train", "val"), parts, strict=True):
        for file in part:
            link = into / name / file.parent.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    return into


def measure(tool: str, seed: int, data: Path, options: Namespace) -> dict[str, Any]:
    """Return the metrics and the times of a run of a tool."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.monotonic()
        metrics = (_run_finetune if tool == "finetune" else _run_peer)(
            tool, seed, data, options, folder
        )
        wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**metrics, "wall": wall, "cpu": cpu}


def _run_finetune(
    tool: str, seed: int, data: Path, options: Namespace, folder: Path
) -> dict[str, float]:
    args = ["fit", data, "--backbone", options.backbone, "--weights", options.weights]
    args += ["--seed", seed, "--output", folder / "run", "--json", *options.settings]
    output = _run([sys.executable, "-m", "finetune", *args], folder)
    metrics = json.loads(output)["metrics"]["val"]
    return {name: metrics[name] for name in METRICS}


def _run_peer(
    tool: str, seed: int, data: Path, options: Namespace, folder: Path
) -> dict[str, float]:
    script, *extra = TOOLS[tool]
    args = [data, "--backbone", options.backbone, "--weights", options.weights.resolve()]
    args += ["--seed", seed, "--output", folder / "predicted.json", *extra]
    _run([sys.executable, script, *args], folder)
    predicted = json.loads((folder / "predicted.json").read_text())
    files = sorted(f for f in (data / "val").rglob("*") if f.suffix.lower() in IMAGES)
    labels = [file.parent.name for file in files]
    predictions = [predicted[file.relative_to(data / "val").as_posix()] for file in files]
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro")),
    }


def _run(command: Sequence[object], folder: Path) -> str:
    """Run a tool with empty caches and return its output; exit with its messages if it fails."""
    process = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "FINETUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        messages = f"{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
        raise SystemExit(f"{command[1]} failed:\n{messages}")
    return process.stdout


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print a row per tool, and the ratios of finetune to each peer."""
    print(f"{'tool':<16}{'seeds':>6}  {'accuracy':<22}{'balanced':>9}{'macro F1':>9}", end="")
    print(f"  {'wall s':<17}{'CPU s':>7}")
    of_tool = {tool: [r for r in results if r["tool"] == tool] for tool in TOOLS}
    for tool, rows in of_tool.items():
        if not rows:
            continue
        values = [row["accuracy"] for row in rows]
        shown = f"{statistics.mean(values):.4f} [{min(values):.4f}-{max(values):.4f}]"
        others = [statistics.mean(row[name] for row in rows) for name in METRICS[1:]]
        walls = [row["wall"] for row in rows]
        wall = f"{statistics.median(walls):.0f} [{min(walls):.0f}-{max(walls):.0f}]"
        cpu = statistics.median(row["cpu"] for row in rows)
        print(f"{tool:<16}{len(rows):>6}  {shown:<22}{others[0]:>9.4f}{others[1]:>9.4f}", end="")
        print(f"  {wall:<17}{cpu:>7.0f}")
    own = of_tool["finetune"]
    for tool, rows in of_tool.items():
        if tool == "finetune" or not (rows and own):
            continue
        own_error, error = (1 - statistics.mean(r["accuracy"] for r in x) for x in (own, rows))
        own_wall, wall_time = (statistics.median(r["wall"] for r in x) for x in (own, rows))
        print(
            f"finetune / {tool}: error {own_error / error:.2f}, "
            f"wall time {own_wall / wall_time:.2f}"
        )


def main() -> None:
    """Run the missing cases and print all results."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--tools", default="finetune,fastai", help=f"any of {', '.join(TOOLS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--keep", type=Path, required=True, help="JSON file of all results")
    parser.add_argument(
        "--settings",
        nargs="*",
        default=[],
        help="config keys of finetune, e.g. optim.lr=1e-4; stored separately",
    )
    options = parser.parse_args()
    kept: list[dict[str, Any]] = (
        json.loads(options.keep.read_text()) if options.keep.exists() else []
    )
    case = {
        "data": str(options.data.resolve()),
        "weights": options.weights.name,
        "backbone": options.backbone,
        "settings": " ".join(options.settings),
    }
    with tempfile.TemporaryDirectory() as name:
        data = split_folder(options.data, Path(name))
        for seed in map(int, options.seeds.split(",")):
            for tool in options.tools.split(","):
                settings = case["settings"] if tool == "finetune" else ""
                key = {**case, "settings": settings, "tool": tool, "seed": seed}
                if any(key.items() <= result.items() for result in kept):
                    continue
                result = {**key, **measure(tool, seed, data, options)}
                kept.append(result)
                options.keep.write_text(json.dumps(kept, indent=1) + "\n")
                print(
                    f"{tool} {seed}: {result['accuracy']:.4f} in {result['wall']:.0f} s", flush=True
                )
    print_table(
        [
            r
            for r in kept
            if all(r[name] == case[name] for name in ("data", "weights", "backbone"))
            and r["settings"] == (case["settings"] if r["tool"] == "finetune" else "")
        ]
    )


if __name__ == "__main__":
    main()
