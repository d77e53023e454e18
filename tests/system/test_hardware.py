"""Hardware of the node: accelerators, cores, memory and out-of-memory errors."""

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch

from finetune.errors import ConfigError
from finetune.system import hardware, host
from finetune.system.hardware import (
    explain_out_of_memory,
    get_free_memory,
    is_out_of_memory,
    prepare_accelerator,
    release_memory,
    resolve_accelerator,
)
from finetune.system.host import count_available_cores


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_resolve_accelerator_auto_prefers_an_available_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert resolve_accelerator("auto") == chosen
    assert resolve_accelerator("cpu") == "cpu"
    assert resolve_accelerator(chosen) == chosen
    for name, is_available in (("cuda", cuda), ("mps", mps)):
        if not is_available:
            with pytest.raises(ConfigError, match=f"^--device={name}: .*auto"):
                resolve_accelerator(name, setting="--device")


@pytest.mark.parametrize(("accelerator", "num_calls"), [("cpu", 1), ("cuda", 0)])
def test_prepare_accelerator_keeps_freed_memory_on_the_cpu_only(
    accelerator: str, num_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(hardware, "keep_freed_memory", lambda: calls.append(True))
    assert prepare_accelerator(accelerator) == accelerator
    assert len(calls) == num_calls
    with pytest.raises(ConfigError, match="--device=tpu"):
        prepare_accelerator("tpu", setting="--device")


def test_freed_memory_is_returned_before_it_is_measured_and_after_a_failed_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for module in (hardware, host):
        monkeypatch.setattr(module, "return_freed_memory", lambda: calls.append("return"))
    monkeypatch.setattr(host, "_read_available_memory", lambda: calls.append("read"))
    monkeypatch.setattr(host, "_find_cgroups", list)
    assert get_free_memory("cpu") is None
    assert calls == ["return", "read"]
    release_memory()
    assert calls == ["return", "read", "return"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_count_available_cores_respects_cpu_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_find_cgroups", list)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert count_available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert count_available_cores() == len(before)


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="no /proc/meminfo on this system")
def test_get_free_memory_cpu_is_below_total_memory() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = get_free_memory("cpu")
    assert free is not None
    assert 0 < free < total
    assert get_free_memory("mps") is None


def write_cgroup(folder: Path, *, limit: str, used: int, page_cache: int = 0) -> None:
    """Write the memory files of a cgroup as the kernel shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 7\nfile {page_cache + 5}\ninactive_anon 7\nactive_anon 7\n"
        f"inactive_file {page_cache - page_cache // 4}\nactive_file {page_cache // 4}\n"
        "workingset_activate_file 3\n"
    )


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a process in the cgroup ``/job/step`` with 1 TB of memory available."""
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(host, "_PROCESS_CGROUP_FILE", tmp_path / "own")
    monkeypatch.setattr(host, "_CGROUP_ROOT", tmp_path / "groups")
    monkeypatch.setattr(host, "_read_available_memory", lambda: 10**12)
    write_cgroup(tmp_path / "groups" / "job" / "step", limit="max", used=500)
    return tmp_path / "groups"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [
        ("max 100000", "max 100000", 8),
        ("400000 100000", "max 100000", 4),
        ("150000 100000", "max 100000", 2),
        ("max 100000", "300000 100000", 3),
        ("1000 100000", "300000 100000", 1),
        ("1600000 100000", "max 100000", 8),
    ],
)
def test_count_available_cores_respects_cgroup_quotas(
    own: str, parent: str, expected: int, cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for folder, quota in ((cgroups / "job" / "step", own), (cgroups / "job", parent)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{quota}\n")
    assert count_available_cores() == expected


def test_get_free_memory_is_the_minimum_over_cgroup_ancestors(cgroups: Path) -> None:
    assert get_free_memory("cpu") == 10**12
    write_cgroup(cgroups / "job", limit="1000", used=400)
    assert get_free_memory("cpu") == 600
    write_cgroup(cgroups / "job" / "step", limit="800", used=300)
    assert get_free_memory("cpu") == 500
    write_cgroup(cgroups, limit="900", used=850)  # as in a container, whose own cgroup is the root
    assert get_free_memory("cpu") == 50
    write_cgroup(cgroups / "other", limit="10", used=10)
    assert get_free_memory("cpu") == 50
    write_cgroup(cgroups, limit="900", used=1000)
    assert get_free_memory("cpu") == 0


def test_get_free_memory_counts_page_cache_as_free(cgroups: Path) -> None:
    write_cgroup(cgroups / "job", limit="1000", used=1000, page_cache=900)
    assert get_free_memory("cpu") == 900


def test_get_free_memory_without_sources_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_PROCESS_CGROUP_FILE", tmp_path / "absent")
    monkeypatch.setattr(host, "_read_available_memory", lambda: None)
    assert get_free_memory("cpu") is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 12 bytes"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
    ids=str,
)
def test_is_out_of_memory_by_error(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_is_out_of_memory_recognises_a_failed_allocation() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    explanation = explain_out_of_memory(caught.value)
    assert str(2**60) in explanation
    assert "\n" not in explanation


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. GPU 0.\nmore", "Out of memory: CUDA out of memory. GPU 0."),
        ("12 bytes (Cannot allocate)", "Out of memory: 12 bytes (Cannot allocate)."),
        ("", "Out of memory: the system has no memory left."),
    ],
)
def test_explain_out_of_memory_is_one_sentence(message: str, expected: str) -> None:
    assert explain_out_of_memory(MemoryError(message)) == expected


def test_release_memory_frees_reference_cycles() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.tensor = torch.zeros(3)
            self.itself = self

    gc.disable()
    try:
        tensor = weakref.ref(Cycle().tensor)
        assert tensor() is not None
        release_memory()
        assert tensor() is None
    finally:
        gc.enable()
