"""Refusal of model files that may contain pickled code, by their names: none is opened."""

import shlex
from pathlib import Path

_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib", ".pt.tar", ".pth.tar")


def explain_pickle(path: Path) -> str | None:
    """Return why a file, or a folder with such files alone, is no model to be opened, or None.

    Args:
        path: File, or folder without a bundle.
    """
    if path.is_file():
        if not _is_pickle(path):
            return None
        graph = path.with_suffix(".xml")
        return _explain_weights(path, graph) if graph.is_file() else _explain_file(path)
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(file for file in path.iterdir() if file.is_file() and _is_pickle(file))
    return _explain_file(files[0]) if files else None


def _is_pickle(file: Path) -> bool:
    return file.name.lower().endswith(_SUFFIXES)


def _explain_weights(file: Path, graph: Path) -> str:
    return (
        f"{file} has the weights of an OpenVINO model, whose network is in {graph.name}. Pass "
        f"{graph}"
    )


def _explain_file(file: Path) -> str:
    return (
        f"{file} may contain pickled code, and is not opened as a model. Pass a run folder, a "
        f"bundle or exported folder (safetensors) or a .ckpt file of a run. If it is a state dict "
        f"of tensors, begin a run with it: finetune fit DATA --weights {shlex.quote(file.name)}"
    )
