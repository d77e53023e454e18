"""What the machine has."""

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch

from finetune.errors import ConfigError
from finetune.system import hardware as machine
from finetune.system.hardware import (
    count_available_cores,
    explain_out_of_memory,
    get_free_memory,
    is_out_of_memory,
    release_memory,
    resolve_accelerator,
)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert resolve_accelerator("auto") == chosen
    assert resolve_accelerator("cpu") == "cpu"
    assert resolve_accelerator(chosen) == chosen
    for name, there in (("cuda", cuda), ("mps", mps)):
        if not there:
            with pytest.raises(ConfigError, match=f"^--device={name}: .* no such device.*auto"):
                resolve_accelerator(name, setting="--device")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process")
def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_find_cgroups", list)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert count_available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert count_available_cores() == len(before)


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="the system does not tell")
def test_free_memory_is_some_of_what_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = get_free_memory("cpu")
    assert found is not None
    assert 0 < found < total
    assert get_free_memory("mps") is None


def group(folder: Path, *, limit: str, used: int, files: int = 0) -> None:
    """Write what the kernel shows of a control group's memory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 7\nfile {files + 5}\ninactive_anon 7\nactive_anon 7\n"
        f"inactive_file {files - files // 4}\nactive_file {files // 4}\n"
        "workingset_activate_file 3\n"
    )


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the kernel: a process in the group ``/job/step``, on a roomy machine."""
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(machine, "_PROCESS_CGROUP_FILE", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUP_ROOT", tmp_path / "groups")
    monkeypatch.setattr(machine, "_read_available_memory", lambda: 10**12)
    group(tmp_path / "groups" / "job" / "step", limit="max", used=500)
    return tmp_path / "groups"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process")
@pytest.mark.parametrize(
    ("own", "around", "expected"),
    [
        ("max 100000", "max 100000", 8),
        ("400000 100000", "max 100000", 4),
        ("150000 100000", "max 100000", 2),
        ("max 100000", "300000 100000", 3),
        ("1000 100000", "300000 100000", 1),
        ("1600000 100000", "max 100000", 8),
    ],
)
def test_a_pod_counts_the_cores_that_it_is_granted(
    own: str, around: str, expected: int, groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for folder, share in ((groups / "job" / "step", own), (groups / "job", around)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{share}\n")
    assert count_available_cores() == expected


def test_the_tightest_of_the_groups_around_a_process_counts(groups: Path) -> None:
    assert get_free_memory("cpu") == 10**12
    group(groups / "job", limit="1000", used=400)
    assert get_free_memory("cpu") == 600
    group(groups / "job" / "step", limit="800", used=300)
    assert get_free_memory("cpu") == 500
    group(groups, limit="900", used=850)  # as in a container, whose own group is the root
    assert get_free_memory("cpu") == 50
    group(groups / "other", limit="10", used=10)
    assert get_free_memory("cpu") == 50
    group(groups, limit="900", used=1000)
    assert get_free_memory("cpu") == 0


def test_files_that_were_read_leave_their_memory_free(groups: Path) -> None:
    group(groups / "job", limit="1000", used=1000, files=900)
    assert get_free_memory("cpu") == 900


def test_without_any_numbers_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROCESS_CGROUP_FILE", tmp_path / "absent")
    monkeypatch.setattr(machine, "_read_available_memory", lambda: None)
    assert get_free_memory("cpu") is None


@pytest.mark.parametrize(
    ("error", "full"),
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
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) == full


def test_what_really_happens_when_memory_runs_out_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    said = explain_out_of_memory(caught.value)
    assert str(2**60) in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("CUDA out of memory. GPU 0.\nmore", "Out of memory: CUDA out of memory. GPU 0."),
        ("12 bytes (Cannot allocate)", "Out of memory: 12 bytes (Cannot allocate)."),
        ("", "Out of memory: the system has none left."),
    ],
)
def test_running_out_of_memory_is_one_sentence(message: str, said: str) -> None:
    assert explain_out_of_memory(MemoryError(message)) == said


def test_what_nothing_holds_but_a_circle_is_released() -> None:
    class Circle:
        def __init__(self) -> None:
            self.tensor = torch.zeros(3)
            self.me = self

    gc.disable()
    try:
        tensor = weakref.ref(Circle().tensor)
        assert tensor() is not None
        release_memory()
        assert tensor() is None
    finally:
        gc.enable()
