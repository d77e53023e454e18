"""Network that is a program of ``torch.export``, which runs without the code of its model."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.bundle.model_card import CARD_KEY
from finetune.bundle.runtimes.program_check import check_program_file
from finetune.errors import RunFolderError


class ProgramNetwork(nn.Module):
    """Module that runs a program on the CPU, for any number of images.

    Moving it to another device has no effect.

    Args:
        module: Module of the program.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._run = (module,)  # no submodule: it has no modes, and stays on the CPU

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the program, shape (B, K), on the device of the images."""
        output: Tensor = self._run[0](images.detach().cpu().contiguous())
        return output.to(images.device)


def load_program(file: Path) -> tuple[ProgramNetwork, dict[str, str]]:
    """Return the network of a ``.pt2`` file, and its metadata.

    Raises:
        RunFolderError: The file is damaged, or loading it might run code.
    """
    check_program_file(file)
    extra = {CARD_KEY: ""}  # torch fills in no empty dictionary
    try:
        with warnings.catch_warnings():
            # torch warns of its own archives
            warnings.filterwarnings("ignore", module=r"torch\.")
            module = torch.export.load(file, extra_files=extra).module()
    except Exception as error:  # the loader raises errors of any type
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RunFolderError(
            f"{file} cannot be loaded by torch {torch.__version__}: {reason}. Export the model "
            f"again."
        ) from error
    texts = {
        key: value.decode() if isinstance(value, bytes) else value for key, value in extra.items()
    }
    return ProgramNetwork(module), texts
