"""Size, speed and accuracy of exports in int8 and fp16 beside fp32, and of ways to calibrate.

    uv run python scripts/benchmarks/quantization.py runs/resnet18 runs/lite0 --json results.json

Each run is exported to ONNX and OpenVINO in each precision, whatever it loses. The accuracy is that
of the validation images. Files are timed in turn on batches of 8 and on single images, on one
thread and on two; the ratio to fp32 is computed within a round and printed as median
[minimum-maximum]. `--methods` compares calibration methods by how much each changes the
probabilities of held-out training images: the mean Kullback-Leibler divergence from fp32.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import finetune
from finetune.bundle.bundle import load_model
from finetune.bundle.runtimes.onnx_network import open_onnx_session, read_onnx_metadata
from finetune.bundle.runtimes.openvino_network import EXACT_NUMBERS, get_core
from finetune.commands.export.parity_images import select_calibration_images
from finetune.exporters.quantization.graph_inputs import NUM_CALIBRATION_IMAGES, GraphInputs
from finetune.exporters.quantization.onnx_int8 import quantize_onnx
from finetune.exporters.quantization.quantization_plan import PLANS, QuantizationPlan
from finetune.exporters.quantization.speed import describe_processor

FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
PRECISIONS = ("fp32", "fp16", "int8")
METHODS = tuple(
    QuantizationPlan(f"{method} {plan.name}", plan.description, method, plan.keeps_ends)
    for method in ("minmax", "percentile", "entropy")
    for plan in PLANS
)

Run = Callable[[Any], object]


def open_file(file: Path, num_threads: int) -> Run:
    """Return a function that runs a file on a number of threads."""
    if file.suffix == ".onnx":
        session = open_onnx_session(file, num_threads=num_threads)
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})
    settings = {**EXACT_NUMBERS, "INFERENCE_NUM_THREADS": num_threads}
    compiled = get_core().compile_model(str(file), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda batch: request.infer([batch], share_inputs=True)


def time_files(files: dict[str, Path], batch: Any, num_threads: int, rounds: int) -> dict[str, Any]:
    """Return images per second of each file, and its ratios to the first within a round."""
    runs = {name: open_file(file, num_threads) for name, file in files.items()}
    for run in runs.values():
        run(batch)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(batch)
            seconds[name].append(time.perf_counter() - start)
    first = seconds[next(iter(files))]
    return {
        name: {
            "images_per_second": len(batch) / median(values),
            "ratios": [a / b for a, b in zip(first, values, strict=True)],
        }
        for name, values in seconds.items()
    }


def export_all(run: Path, folder: Path, format_name: str) -> tuple[dict[str, Path], dict[str, Any]]:
    """Export a run in each precision, and return the files and their tables."""
    files, tables = {}, {}
    for precision in PRECISIONS:
        output = folder / f"{format_name}-{precision}"
        max_drop = None if precision == "fp32" else 100.0  # nothing is refused
        result = finetune.export(
            run, output, format=format_name, precision=precision, max_drop=max_drop
        )
        files[precision] = output / FILES[format_name]
        if result.comparison is not None:
            tables[precision] = result.comparison.to_json()
    return files, tables


def compare_methods(run: Path, source: Path) -> dict[str, float]:
    """Return the divergence from fp32 of each calibration method, in nats."""
    files = select_calibration_images([run], limit=NUM_CALIBRATION_IMAGES)
    metadata = read_onnx_metadata(open_onnx_session(source))
    inputs = GraphInputs(files, metadata, load_model(run).card.read_options)
    with tempfile.TemporaryDirectory() as folder:
        record = quantize_onnx(source, Path(folder) / "model.onnx", inputs, plans=METHODS)
    return dict(record.divergences)


def print_table(table: dict[str, Any], precision: str) -> None:
    """Print what an export in a precision changed."""
    before, after, drop = table["fp32"], table[precision], table["drop"]
    print(
        f"  {precision}: {after['bytes'] / 1e6:.1f} of {before['bytes'] / 1e6:.1f} MB; "
        f"{drop['metric']} {before[drop['metric']]:.4f} -> {after[drop['metric']]:.4f} "
        f"({drop['points']:+.2f} points lost); log loss {before['loss']:.4f} -> "
        f"{after['loss']:.4f}; {table['quantization']['description']}"
    )


def measure_run(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return and print all measurements of a run."""
    print(run)
    tree: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for format_name in options.formats.split(","):
            files, tables = export_all(run, Path(folder), format_name)
            print(f" {format_name}")
            for precision, table in tables.items():
                print_table(table, precision)
            speeds = {}
            size = load_model(run).card.spec.input_size
            pixels = np.random.default_rng(0).normal(size=(8, *size)).astype(np.float32)
            for num_threads in (1, 2):
                for num_images in (8, 1):
                    timed = time_files(files, pixels[:num_images], num_threads, options.rounds)
                    speeds[f"threads {num_threads}, batch {num_images}"] = timed
                    cells = (
                        f"{name} {row['images_per_second']:.1f}/s, {median(row['ratios']):.2f} "
                        f"[{min(row['ratios']):.2f}-{max(row['ratios']):.2f}]"
                        for name, row in timed.items()
                    )
                    print(f"  {num_threads} threads, batch {num_images}: {'; '.join(cells)}")
            tree[format_name] = {"tables": tables, "speeds": speeds}
            if options.methods and format_name == "onnx":
                tree["methods"] = compare_methods(run, files["fp32"])
                for name, value in tree["methods"].items():
                    print(f"  {name}: divergence {value:.5f}")
    return tree


def main() -> None:
    """Measure all runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--formats", default="onnx,openvino", help="formats, separated by commas")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing")
    parser.add_argument("--methods", action="store_true", help="compare calibration methods")
    parser.add_argument("--json", type=Path, help="JSON file for all measurements")
    options = parser.parse_args()
    print(describe_processor())
    results = {}
    for run in options.runs:
        results[str(run)] = measure_run(run, options)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
