"""Network that OpenVINO runs on the CPU, and the import of OpenVINO without its telemetry."""

import importlib
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ModelError

EXACT_NUMBERS = {"INFERENCE_PRECISION_HINT": "f32"}
"""Configuration of a compiled model; processors with bfloat16 compute in it otherwise."""

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Import OpenVINO such that it sends no usage data.

    Its import, conversions and NNCF send events to a server unless the user has declined; all of
    them do without where the package of the telemetry is missing, as it seems to be from here on.

    Raises:
        ModelError: OpenVINO is not installed; the message has the command that installs it.
    """
    if _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # an import of it then fails
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ModelError(
            f"OpenVINO is not installed here ({error}). Install what it needs: "
            f"pip install 'finetune-vision[openvino]'"
        ) from error


@cache
def get_core() -> Any:
    """Return the one ``openvino.Core`` of this process, which lives until its end.

    The CPU plugin of a core installs a stack for signal handlers, and puts the former one back when
    it is destroyed. Plugins that are not destroyed in the reverse order leave a freed stack behind,
    and the next signal, such as Ctrl-C, is a segmentation fault.

    Raises:
        ModelError: OpenVINO is not installed.
    """
    return import_openvino().Core()


class OpenVinoNetwork(nn.Module):
    """Module that runs a model file of OpenVINO on the CPU in float32, for any number of images.

    It may be called from several threads, and moving it to another device has no effect.

    Args:
        file: The ``.xml`` file; the weights lie beside it.

    Raises:
        ModelError: OpenVINO is not installed, or cannot read the file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        model = _read_model(file)
        try:
            self._compiled = get_core().compile_model(model, "CPU", EXACT_NUMBERS)
        except RuntimeError as error:
            raise _explain_unreadable(file, error) from error
        self._requests = threading.local()

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the model, shape (B, K), on the device of the images."""
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        request.infer([images.detach().cpu().contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy()).to(images.device)


def read_openvino_metadata(file: Path) -> dict[str, str]:
    """Return the texts that an export has written into a model file, by key; empty for none.

    Raises:
        ModelError: OpenVINO is not installed, or cannot read the file.
    """
    model = _read_model(file)
    if not model.has_rt_info(["finetune"]):
        return {}
    return {key: str(value) for key, value in model.get_rt_info(["finetune"]).value.items()}


def _read_model(file: Path) -> Any:
    """Return the model of a file, read as one of OpenVINO alone.

    ``Core.read_model`` tries the readers of other formats on a damaged file, and that of TensorFlow
    logs lines of its own.

    Raises:
        ModelError: OpenVINO is not installed, or cannot read the file.
    """
    import_openvino()
    manager = importlib.import_module("openvino.frontend").FrontEndManager()
    try:
        reader = manager.load_by_framework("ir")
        model = reader.convert(reader.load(str(file)))
        if not model.outputs:
            raise ValueError("it describes no network")
    except Exception as error:  # its own exceptions have no common type
        raise _explain_unreadable(file, error) from error
    return model


def _explain_unreadable(file: Path, error: Exception) -> ModelError:
    reason = str(error).strip().rpartition("\n")[2].rstrip(".!")
    return ModelError(
        f"{file} cannot be read by OpenVINO: {reason}. If it was copied, copy it again with its "
        f".bin file; else export the model again."
    )
