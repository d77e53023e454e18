"""What the machine has."""

import os

import pytest

from finetune.errors import ConfigError
from finetune.machine import free_cores, resolve_accelerator


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
def test_cores_are_those_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert free_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert free_cores() == len(before)
