"""Robustness test: gives thousands of malformed images to ``inspect``, ``predict`` and ``serve``.

Run it by hand before a release, from the root of the repository, with a model and real photos:

    python -m scripts.fuzz_images runs/latest photos/ [--count 10000] [--seed 0] [--only predict]

Each command must end without a crash or a hang, account for each file, and stay below a limit of
memory; the server must answer each request with 200, or with 4xx and a reason. Exits with 1 where
that does not hold. Takes about 10 minutes on two cores.
"""

import argparse
import csv
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from scripts.fuzzing.malformed import generate_files

_MAX_RSS = 3_000_000_000
"""Largest memory of a command in bytes; torch and timm take about 700 MB of it."""

_MAX_SECONDS_PER_FILE = 0.5
_START_SECONDS = 120


def main() -> None:
    """Write the files, run the commands, and print what came of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="run folder or bundle")
    parser.add_argument("photos", type=Path, help="folder of photos, searched recursively")
    parser.add_argument("--count", type=int, default=10_000, help="number of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("inspect", "predict", "serve"))
    arguments = parser.parse_args()
    photos = read_photos(arguments.photos, random.Random(arguments.seed))
    problems: list[str] = []
    with TemporaryDirectory(prefix="malformed-") as name:
        root = Path(name)
        folder = root / "photos"
        kinds = write_files(folder, photos, arguments.count, arguments.seed)
        print(f"{len(kinds)} files: {dict(Counter(kinds.values()))}", flush=True)
        if arguments.only in (None, "inspect"):
            problems += check_inspect(folder, len(kinds))
        if arguments.only in (None, "predict"):
            problems += check_predict(arguments.model, folder, root / "predictions.csv", kinds)
        if arguments.only in (None, "serve"):
            problems += check_serve(arguments.model, folder, root)
    print("\n".join(problems) if problems else "no problem was found")
    sys.exit(1 if problems else 0)


def read_photos(folder: Path, draw: random.Random, count: int = 8) -> list[Image.Image]:
    """Return photos at 160 pixels and less, drawn from a folder."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".png"))
    photos = []
    for file in draw.sample(files, min(count, len(files))):
        with Image.open(file) as image:
            photo = image.convert("RGB")
        photo.thumbnail((160, 160))
        photos.append(photo)
    return photos


def write_files(
    folder: Path, photos: Sequence[Image.Image], count: int, seed: int
) -> dict[str, str]:
    """Write the files into two classes, and return each one's kind by its name."""
    kinds: dict[str, str] = {}
    for number, (name, kind, data) in enumerate(generate_files(photos, count, seed)):
        path = folder / ("first", "second")[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        kinds[name] = kind
    return kinds


def run_command(*arguments: str | Path, num_files: int) -> tuple[str, list[str]]:
    """Run finetune and return its standard output, and what is wrong with how it ended."""
    command = [sys.executable, "-m", "finetune", *map(str, arguments)]
    limit = _START_SECONDS + _MAX_SECONDS_PER_FILE * num_files
    start = time.monotonic()
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return "", [f"{arguments[0]}: did not end within {limit:.0f} s"]
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{arguments[0]}: exit code {process.returncode}, {seconds:.0f} s, {peak / 1e6:.0f} MB")
    print(process.stderr[-1500:], flush=True)
    problems = []
    if process.returncode != 0:
        problems.append(f"{arguments[0]}: exit code {process.returncode}: {process.stderr[-500:]}")
    if "Traceback" in process.stderr:
        problems.append(f"{arguments[0]}: a traceback: {process.stderr[-2000:]}")
    if peak > _MAX_RSS:
        problems.append(f"{arguments[0]}: {peak / 1e6:.0f} MB of memory")
    return process.stdout, problems


def check_inspect(folder: Path, num_files: int) -> list[str]:
    """Inspect the folder; each file is an image or is named with a reason."""
    output, problems = run_command(
        "inspect", folder, "--json", "--output", folder.parent / "audit", num_files=num_files
    )
    if problems:
        return problems
    tree = json.loads(output)
    num_images, rejected = tree["num_images"], tree["unreadable"]
    reasons = Counter(entry["reason"].split(":")[0][:50] for entry in rejected)
    print(f"inspect: {num_images} images, {len(rejected)} rejected: {reasons.most_common(12)}")
    if num_images + len(rejected) != num_files:
        problems.append(f"inspect: {num_images} + {len(rejected)} of {num_files} files")
    return problems


def check_predict(model: Path, folder: Path, output: Path, kinds: Mapping[str, str]) -> list[str]:
    """Predict the folder; each file has one row with a label or with a reason."""
    _, problems = run_command(
        "predict", model, folder, "--output", output, "--device", "cpu", num_files=len(kinds)
    )
    if problems:
        return problems
    with output.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = Counter(Path(row["path"]).name for row in rows)
    predicted = Counter(kinds[Path(row["path"]).name] for row in rows if row["label"])
    print(f"predict: {sum(predicted.values())} of {len(rows)} predicted: {dict(predicted)}")
    problems += [f"predict: {name} has no row" for name in kinds if name not in names]
    problems += [f"predict: {name} has {count} rows" for name, count in names.items() if count > 1]
    problems += [
        f"predict: {row['path']} has neither a label nor a reason, or both"
        for row in rows
        if bool(row["label"]) == bool(row["error"])
    ]
    return problems


def check_serve(model: Path, folder: Path, root: Path) -> list[str]:
    """Post each file to a server; it answers each, and goes on answering."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (root / "serve.log").open("w+", encoding="utf-8")
    command = [sys.executable, "-m", "finetune", "serve", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_healthy(process, port)
        problems = post_files(process.pid, port, sorted(folder.rglob("*.*")))
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    log.seek(0)
    text = log.read()
    if code != 0 or "Traceback" in text:
        problems.append(f"serve: exit code {code}: {text[-2000:]}")
    return problems


def wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers.

    Raises:
        TimeoutError: It does not within two minutes, or it has ended.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if request(port, "GET", "/health", b"")[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the server does not answer")


def request(port: int, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Return status and body of one request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def post_files(pid: int, port: int, files: Sequence[Path]) -> list[str]:
    """Post the files one by one, and return what was wrong with the answers."""
    statuses: Counter[int] = Counter()
    problems: list[str] = []
    slowest = (0.0, "")
    start = time.monotonic()
    for file in files:
        begin = time.monotonic()
        try:
            status, body = request(port, "POST", "/predict", file.read_bytes())
        except (OSError, HTTPException) as error:
            problems.append(f"serve: {file.name}: {error!r}")
            continue
        slowest = max(slowest, (time.monotonic() - begin, file.name))
        statuses[status] += 1
        if status != 200 and not (400 <= status < 500 and json.loads(body).get("detail")):
            problems.append(f"serve: {file.name}: {status} {body[:200]!r}")
    peak = read_peak_memory(pid)
    print(
        f"serve: {dict(statuses)}, {time.monotonic() - start:.0f} s, slowest {slowest[0]:.2f} s "
        f"({slowest[1]}), {peak / 1e6:.0f} MB"
    )
    if peak > _MAX_RSS:
        problems.append(f"serve: {peak / 1e6:.0f} MB of memory")
    return problems


def read_peak_memory(pid: int) -> int:
    """Return the largest resident memory of a process so far, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
