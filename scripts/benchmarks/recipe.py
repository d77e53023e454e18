"""What one command comes to: finetune with its defaults against its peers with theirs.

    uv run --with fastai --with transformers --with accelerate \
        python scripts/benchmarks/recipe.py photos/ --weights resnet18.pth --keep results.json

Every tool gets the same weights file, the same images for training and validation and the same
cores, and takes its own recommended settings (peers/*.py name their source). Each run is a process
of its own, with imports, from files to predictions of the validation images; finetune starts with
empty caches. A folder without train and val is divided 80/20, class by class, once for all.

Each result is written to --keep at once, and what stands there is not run again: hours can be done
in parts, or with other seeds and tools later. Prints accuracy, balanced accuracy, macro-F1 (means
over the seeds), wall and CPU time (medians), with the least and the most, and each peer against
finetune.

finetune, Hugging Face and the tutorial keep the epoch that is best on the validation images, fastai
and timm's loop the last, as each does by itself.
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
TOOLS = {
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
    """Return a folder of train and val: the given one, or one of links to its images."""
    if (data / "train").is_dir() and (data / "val").is_dir():
        return data.resolve()
    files = sorted(f for f in data.resolve().rglob("*") if f.suffix.lower() in IMAGES)
    labels = [file.parent.name for file in files]
    parts = train_test_split(files, test_size=0.2, random_state=0, stratify=labels)
    for name, part in zip(("train", "val"), parts, strict=True):
        for file in part:
            place = into / name / file.parent.name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return into


def measured(tool: str, seed: int, data: Path, options: Namespace) -> dict[str, Any]:
    """Return what a run of a tool came to, and what it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.monotonic()
        metrics = (_finetune if tool == "finetune" else _peer)(tool, seed, data, options, folder)
        wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**metrics, "wall": wall, "cpu": cpu}


def _finetune(
    tool: str, seed: int, data: Path, options: Namespace, folder: Path
) -> dict[str, float]:
    words = ["fit", data, "--backbone", options.backbone, "--weights", options.weights]
    words += ["--seed", seed, "--output", folder / "run", "--json", *options.settings]
    found = _run([sys.executable, "-m", "finetune", *words], folder)
    metrics = json.loads(found)["metrics"]["val"]
    return {name: metrics[name] for name in METRICS}


def _peer(tool: str, seed: int, data: Path, options: Namespace, folder: Path) -> dict[str, float]:
    script, *more = TOOLS[tool]
    words = [data, "--backbone", options.backbone, "--weights", options.weights.resolve()]
    words += ["--seed", seed, "--output", folder / "predicted.json", *more]
    _run([sys.executable, script, *words], folder)
    predicted = json.loads((folder / "predicted.json").read_text())
    files = sorted(f for f in (data / "val").rglob("*") if f.suffix.lower() in IMAGES)
    true = [file.parent.name for file in files]
    chosen = [predicted[file.relative_to(data / "val").as_posix()] for file in files]
    return {
        "accuracy": float(accuracy_score(true, chosen)),
        "balanced_accuracy": float(balanced_accuracy_score(true, chosen)),
        "macro_f1": float(f1_score(true, chosen, average="macro")),
    }


def _run(command: Sequence[object], folder: Path) -> str:
    """Run a tool on empty caches and return what it prints; its messages if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "FINETUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command[1]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print a row for each tool, and what each peer comes to beside finetune."""
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
        error, theirs = (1 - statistics.mean(r["accuracy"] for r in part) for part in (own, rows))
        taken, their = (statistics.median(r["wall"] for r in part) for part in (own, rows))
        print(f"finetune / {tool}: error {error / theirs:.2f}, wall time {taken / their:.2f}")


def main() -> None:
    """Run what is missing, and print all of it."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--tools", default="finetune,fastai", help=f"of {', '.join(TOOLS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--keep", type=Path, required=True, help="JSON file of all results")
    parser.add_argument(
        "--settings", nargs="*", default=[], help="of finetune, as optim.lr=1e-4; kept apart"
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
                result = {**key, **measured(tool, seed, data, options)}
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
