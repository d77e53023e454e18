"""Checkpoints of a run whose training has diverged that can be used all the same."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.bundle.checkpoint_file import AVERAGE_KEY, load_checkpoint_file
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.mid_epoch_resume import RESUME_STATE_KEY, ResumeState
from finetune.training.checkpoint_io import PROBE_KEY


def describe_kept_models(run: RunFolder) -> str:
    """Return sentences on the best model and the last checkpoint with finite weights, if any."""
    best, last = _find_origin(run.best_checkpoint_path), _find_origin(run.last_checkpoint_path)
    sentences = []
    if last is not None:
        sentences.append(f"The last good checkpoint is {run.last_checkpoint_path} ({last}).")
    if best is not None:
        folder = shlex.quote(str(run.path))
        sentences.append(
            f"The best model so far ({best}) is kept in {run.best_checkpoint_path}: finetune "
            f"evaluate {folder} and finetune export {folder} use it."
        )
    if not sentences:
        return "No checkpoint was written before, and the run has no model to use."
    if best is None:
        sentences.append("The run has no best model yet that could be evaluated or exported.")
    return " ".join(sentences)


def _find_origin(path: Path) -> str | None:
    """Return what a checkpoint was written after; None if it is missing or has bad weights."""
    if not path.is_file():
        return None
    try:
        checkpoint = load_checkpoint_file(path)
    except Exception:  # torch raises errors of many types for a damaged file
        return None
    if not _has_finite_weights(checkpoint):
        return None
    if RESUME_STATE_KEY in checkpoint:
        state = ResumeState.from_checkpoint(checkpoint)
        if state.steps_in_epoch:
            return f"epoch {state.completed_epochs + 1}, step {state.steps_in_epoch}"
        return f"epoch {state.completed_epochs}"
    return "the linear probe" if PROBE_KEY in checkpoint else "earlier weights"


def _has_finite_weights(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether all weights are finite, those of an average too."""
    average = checkpoint.get(AVERAGE_KEY, {}).get("tensors", {})
    tensors = [*checkpoint["state_dict"].values(), *average.values()]
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())
