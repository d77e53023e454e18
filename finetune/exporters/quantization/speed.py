"""Images per second of files beside each other on this machine."""

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

BATCH_SIZE = 8
"""Images of a timed batch."""

_NUM_ROUNDS = 9
_MIN_ROUNDS = 3
_MAX_SECONDS = 20.0

_CPU_FACTS = Path("/proc/cpuinfo")


def measure_speeds(
    runs: Mapping[str, Callable[[], object]],
    *,
    num_images: int,
    num_rounds: int = _NUM_ROUNDS,
    max_seconds: float = _MAX_SECONDS,
) -> dict[str, float]:
    """Return the images per second of each function, the median over rounds.

    The functions alternate, so that other work on the machine slows all of them alike.

    Args:
        runs: Functions that each process the same batch.
        num_images: Images of the batch.
        num_rounds: Number of rounds.
        max_seconds: Time after which no round starts, once three are done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    start = time.perf_counter()
    for number in range(num_rounds):
        if number >= _MIN_ROUNDS and time.perf_counter() - start > max_seconds:
            break
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: num_images / median(values) for name, values in seconds.items()}


def describe_processor() -> str:
    """Return the name of the processor, and which integer instructions of x86 it has."""
    facts = _read_cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "flags" not in facts:
        return name
    flags = set(facts["flags"].split())
    has_vnni = flags & {"avx512_vnni", "avx_vnni"}
    return f"{name} {'with' if has_vnni else 'without'} VNNI"


def _read_cpu_facts() -> dict[str, str]:
    """Return the first value of each key that Linux tells of the processors; empty elsewhere."""
    try:
        lines = _CPU_FACTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    facts: dict[str, str] = {}
    for key, _, value in pairs:
        facts.setdefault(key.strip(), value.strip())
    return facts
