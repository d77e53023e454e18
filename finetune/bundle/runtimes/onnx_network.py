"""Network that ONNX Runtime runs on the CPU."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ModelError

_ERRORS_ONLY = 3
"""Severity from which ONNX Runtime prints; its warnings are about optimisations that it omits."""


def open_onnx_session(file: Path, *, num_threads: int | None = None) -> Any:
    """Return a session of ONNX Runtime on the CPU.

    Args:
        file: ONNX file.
        num_threads: Threads of an operator; None for as many as torch uses.

    Raises:
        ModelError: ONNX Runtime is not installed, or cannot read the file.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ModelError(
            f"{file} needs ONNX Runtime, which is not installed here ({error}). Install what it "
            f"needs: pip install 'finetune-vision[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{file} cannot be read by ONNX Runtime: {reason}") from error


def read_onnx_metadata(session: Any) -> dict[str, str]:
    """Return the metadata in the file of a session, by key."""
    return dict(session.get_modelmeta().custom_metadata_map)


class OnnxNetwork(nn.Module):
    """Module that runs an ONNX file on the CPU, for any number of images.

    It may be called from several threads, and moving it to another device has no effect.

    Args:
        session: Session of a file with one input and one output.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        self._input = session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the file, shape (B, K), on the device of the images."""
        pixels = images.detach().cpu().contiguous().numpy()
        (output,) = self._session.run(None, {self._input: pixels})
        return torch.from_numpy(output).to(images.device)
