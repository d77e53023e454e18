"""Throughput, latency and memory of `finetune serve`, beside the same work in a plain loop.

    OMP_NUM_THREADS=1 uv run python scripts/benchmarks/serving.py RUN IMAGES --runtime onnx
    OMP_NUM_THREADS=1 uv run python scripts/benchmarks/serving.py RUN IMAGES --seconds 600

The plain loop decodes the same files by the same code and gives them to the same network in batches
of the same size, in a process of its own. The load generator is another process: as many asyncio
clients of httpx as two batches have images, each with one photo per request and the next one as
soon as it is answered. The server's memory is read from /proc every second.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

_WARM_UP_SECONDS = 5.0
_LOOP_SECONDS = 20.0


def measure_loop(model: Path, images: Sequence[Path], batch_size: int, runtime: str) -> None:
    """Print the images per second of a plain loop, and the time of a batch, as JSON."""
    import torch

    from finetune.bundle.bundle import load_model
    from finetune.commands.serve.runtime import choose_runtime
    from finetune.data.images.source import MemorySource
    from finetune.inference.predictor import Predictor
    from finetune.system.hardware import prepare_accelerator
    from finetune.types import Reporter

    prepare_accelerator("cpu")
    contents = [file.read_bytes() for file in images]
    with choose_runtime(load_model(model), runtime, reporter=Reporter()) as (bundle, _):  # type: ignore[arg-type]
        predictor = Predictor(bundle, device="cpu", batch_size=batch_size)
        seconds: list[float] = []
        stream = itertools.cycle(contents)
        start = time.monotonic()
        while time.monotonic() - start < _LOOP_SECONDS:
            begin = time.monotonic()
            batch = list(itertools.islice(stream, batch_size))
            views = [predictor.load_views(MemorySource([one], [""]), 0) for one in batch]
            stacked = [torch.stack(pixels) for pixels in zip(*views, strict=True)]
            predictor.compute_probabilities(predictor.compute_logits(stacked)).tolist()
            seconds.append(time.monotonic() - begin)
    timed = seconds[2:]
    print(
        json.dumps(
            {
                "images_per_second": batch_size / statistics.mean(timed),
                "batch_seconds": statistics.median(timed),
            }
        )
    )


async def _send_load(
    url: str, contents: Sequence[bytes], num_clients: int, seconds: float
) -> tuple[list[float], dict[str, int]]:
    """Return the seconds of all answered requests, and the number of those that failed by kind."""
    latencies: list[float] = []
    failures: dict[str, int] = {}
    stream = itertools.cycle(contents)
    deadline = time.monotonic() + seconds

    async def run(client: httpx.AsyncClient) -> None:
        while time.monotonic() < deadline:
            start = time.monotonic()
            try:
                answer = await client.post("/predict", content=next(stream))
                kind = "" if answer.status_code == 200 else str(answer.status_code)
            except httpx.HTTPError as error:
                kind = type(error).__name__
            if kind:
                failures[kind] = failures.get(kind, 0) + 1
            else:
                latencies.append(time.monotonic() - start)

    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(*(run(client) for _ in range(num_clients)))
    return latencies, failures


def send_load(url: str, images: Sequence[Path], num_clients: int, seconds: float) -> None:
    """Load a server, and print throughput and latencies as JSON."""
    contents = [file.read_bytes() for file in images]
    asyncio.run(_send_load(url, contents, num_clients, _WARM_UP_SECONDS))
    start = time.monotonic()
    latencies, failures = asyncio.run(_send_load(url, contents, num_clients, seconds))
    elapsed = time.monotonic() - start
    cuts = statistics.quantiles(latencies, n=100)
    print(
        json.dumps(
            {
                "requests": len(latencies),
                "failures": failures,
                "images_per_second": len(latencies) / elapsed,
                "p50_seconds": cuts[49],
                "p99_seconds": cuts[98],
                "max_seconds": max(latencies),
            }
        )
    )


def _read_memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1000 if found else 0.0


def _run_json(words: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    tree: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return tree


def measure_server(arguments: argparse.Namespace, images: Sequence[Path]) -> dict[str, Any]:
    """Return throughput, latencies and memory of a server under load."""
    words = [sys.executable, "-m", "finetune", "serve", str(arguments.model), "--port", "0"]
    words += ["--device", "cpu", "--runtime", arguments.runtime]
    words += [
        "--batch-size",
        str(arguments.batch_size),
        "--max-wait-ms",
        str(arguments.max_wait_ms),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = None
        while url is None:
            line = server.stdout.readline()
            assert line, "the server did not start"
            found = re.search(r"Serving at (http://[\d.:]+)", line)
            url = None if found is None else found[1]
        memory: list[float] = []
        load = [sys.executable, __file__, *map(str, (arguments.model, arguments.images))]
        load += ["--load", url, "--clients", str(arguments.clients or 2 * arguments.batch_size)]
        load += ["--seconds", str(arguments.seconds)]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(_run_json, load)
            while not running.done():
                with suppress(OSError):
                    memory.append(_read_memory(server.pid))
                time.sleep(1)
            result = running.result()
        text = httpx.get(f"{url}/metrics").text
        server.terminate()
        code = server.wait(60)
    quarter = max(1, len(memory) // 4)
    result |= {
        "mean_batch": _read_mean(text, "finetune_batch_images"),
        "network_seconds": _read_mean(text, "finetune_network_seconds"),
        "memory_mb": [round(statistics.mean(part)) for part in _split(memory, quarter)],
        "exit_code": code,
    }
    return result


def _split(values: Sequence[float], size: int) -> list[Sequence[float]]:
    return [values[first : first + size] for first in range(0, size * 4, size) if values[first:]]


def _read_mean(text: str, name: str) -> float:
    total = re.search(rf"^{name}_sum (\S+)", text, re.MULTILINE)
    count = re.search(rf"^{name}_count (\S+)", text, re.MULTILINE)
    assert total is not None
    assert count is not None
    return float(total[1]) / float(count[1])


def main() -> None:
    """Measure the loop and the server, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder of JPEG files")
    parser.add_argument("--runtime", choices=("torch", "onnx"), default="torch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-wait-ms", type=float, default=0.0)
    parser.add_argument("--clients", type=int, help="[two batches]")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    images = sorted(arguments.images.rglob("*.jpg"))
    if arguments.loop:
        measure_loop(arguments.model, images, arguments.batch_size, arguments.runtime)
        return
    if arguments.load:
        send_load(arguments.load, images, arguments.clients, arguments.seconds)
        return
    words = [sys.executable, __file__, str(arguments.model), str(arguments.images), "--loop"]
    words += ["--runtime", arguments.runtime, "--batch-size", str(arguments.batch_size)]
    loop = _run_json(words)
    server = measure_server(arguments, images)
    ratio = server["images_per_second"] / loop["images_per_second"]
    tail = server["p99_seconds"] / loop["batch_seconds"]
    print(f"threads: {os.environ.get('OMP_NUM_THREADS', 'all')}, runtime: {arguments.runtime}")
    print(f"loop: {json.dumps(loop)}")
    print(f"server: {json.dumps(server)}")
    print(
        f"throughput of the server: {ratio:.2f} of the loop; p99 is {tail:.2f} batches of the loop"
    )


if __name__ == "__main__":
    main()
