"""What this machine has, asked by training and by everything that only uses a model."""

import os

import torch

from finetune.errors import ConfigError


def resolve_accelerator(asked: str, *, setting: str = "trainer.accelerator") -> str:
    """Return "cpu", "cuda" or "mps" for what was asked.

    Args:
        asked: One of them, or "auto" for a GPU where there is one.
        setting: The option or config key that asked, for the message.

    Raises:
        ConfigError: This machine has no such device.
    """
    has = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked == "auto":
        return "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    if not has[asked]:
        raise ConfigError(
            f"{setting}={asked}: this machine shows no such device. Leave it at auto, or check the "
            f"driver."
        )
    return asked


def free_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
