"""Tests of the allocator's thresholds."""

import subprocess
import sys

import pytest

from finetune.system.allocator import keep_freed_memory, return_freed_memory
from tests.support.helpers import ROOT

TRIM, MMAP = -1, -3


class FakeGlibc:
    """C library that records the parameters it accepts."""

    def __init__(self, max_threshold: int) -> None:
        self.max_threshold = max_threshold
        self.parameters: dict[int, int] = {}
        self.num_trims = 0

    def mallopt(self, parameter: int, value: int, /) -> int:
        if parameter == MMAP and value > self.max_threshold:
            return 0
        self.parameters[parameter] = value
        return 1

    def malloc_trim(self, pad: int, /) -> int:
        self.num_trims += pad == 0
        return 1


@pytest.mark.parametrize(
    ("max_threshold", "threshold"), [(2**31 - 1, 2**30), (32 * 2**20, 32 * 2**20)]
)
def test_keep_freed_memory_sets_the_largest_threshold_that_glibc_accepts(
    max_threshold: int, threshold: int
) -> None:
    libc = FakeGlibc(max_threshold)
    assert keep_freed_memory({}, libc)
    assert libc.parameters == {MMAP: threshold, TRIM: -1}


def test_keep_freed_memory_reports_a_library_that_rejects_both_thresholds() -> None:
    libc = FakeGlibc(0)
    assert not keep_freed_memory({}, libc)
    assert libc.parameters == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "65536"),
        ("MALLOC_TRIM_THRESHOLD_", "0"),
        ("MALLOC_MMAP_MAX_", "0"),
        ("MALLOC_TOP_PAD_", "0"),
        ("GLIBC_TUNABLES", "glibc.malloc.check=1:glibc.malloc.mmap_threshold=65536"),
    ],
)
def test_keep_freed_memory_respects_variables_of_the_user(variable: str, value: str) -> None:
    libc = FakeGlibc(2**31 - 1)
    assert not keep_freed_memory({variable: value}, libc)
    assert libc.parameters == {}


def test_keep_freed_memory_ignores_variables_of_other_parameters() -> None:
    others = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    assert keep_freed_memory(others, FakeGlibc(2**31 - 1))


def test_return_freed_memory_trims_the_heap() -> None:
    libc = FakeGlibc(0)
    return_freed_memory(libc)
    assert libc.num_trims == 1


CODE = """
import ctypes, resource, sys
from finetune.system.allocator import keep_freed_memory, return_freed_memory

def count_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def count_pages():
    return int(open("/proc/self/statm").read().split()[1])

if "keep" in sys.argv:
    assert keep_freed_memory({})
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for repeat in range(4):
    before = count_faults()
    blocks = [malloc(40 * 2**20) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, 40 * 2**20)
    for block in blocks:
        free(block)
    faults = count_faults() - before
held = count_pages()
return_freed_memory()
print(faults, held - count_pages())
"""


def measure_faults_and_returned_pages(*arguments: str) -> tuple[int, int]:
    """Return the page faults of 80 MiB allocated again, and the pages returned afterwards."""
    process = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True, text=True, check=True, cwd=ROOT, env={},
    )  # fmt: skip
    faults, returned = map(int, process.stdout.split())
    return faults, returned


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc and /proc")
def test_freed_memory_is_reused_without_page_faults_until_it_is_returned() -> None:
    num_pages = 80 * 2**20 // 4096
    faults, returned = measure_faults_and_returned_pages("keep")
    assert faults < num_pages / 20
    assert returned > num_pages / 2
    # a system with huge pages has few page faults in any case
    usual_faults, returned = measure_faults_and_returned_pages()
    assert usual_faults > faults
    assert returned < num_pages / 20
