"""Formats of ``finetune export``: a table of rows whose modules are imported on first use."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from finetune.errors import ConfigError
from finetune.lookup import suggest_name
from finetune.types import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.bundle.bundle import ModelBundle
    from finetune.bundle.model_card import ModelCard

PRECISIONS = ("fp32", "fp16", "int8")
"""Values of ``--precision``."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Choices of what an exported file does, and in which numbers.

    Attributes:
        includes_preprocessing: Whether the file takes photos and gives probabilities; otherwise
            it takes normalised pixels and gives logits.
        precision: Type of the numbers, one of ``PRECISIONS``.
        opset: Version of the ONNX operators; None for the default.
        calibration_images: Training images from which a quantised model measures its ranges.
    """

    includes_preprocessing: bool = False
    precision: str = "fp32"
    opset: int | None = None
    calibration_images: tuple[Path, ...] = ()


class FormatModule(Protocol):
    """Module of a format, which only the export to this format imports."""

    def explain_refusal(self, bundle: "ModelBundle", options: ExportOptions) -> str | None:
        """Return why the format cannot hold a model, and the remedy; None where it can."""

    def write_model(
        self, bundle: "ModelBundle", folder: Path, options: ExportOptions, reporter: Reporter
    ) -> "ModelCard":
        """Write a model into an existing folder, and return the card of what was written."""

    def predict_files(self, folder: Path, images: Sequence[Path]) -> "Tensor":
        """Return the probabilities of image files, shape (N, K), as a user of the format would.

        The written files are run by their own runtime on images that their own preprocessing, or
        an independent implementation of what their metadata says, has prepared.
        """


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """Row of the table of formats.

    Attributes:
        name: Value of ``--format``.
        description: Content of the exported folder.
        runtime: Name of what runs the exported file, for messages.
        module: Python module with the functions of ``FormatModule``.
        extra: Extra of finetune-vision that it needs; None for none.
        packages: Python packages of the extra.
        precisions: Values of ``--precision`` that it can be written in.
        can_include_preprocessing: Whether ``--include-preprocessing`` applies.
        has_opset: Whether ``--opset`` applies.
    """

    name: str
    description: str
    runtime: str
    module: str
    extra: str | None = None
    packages: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    can_include_preprocessing: bool = False
    has_opset: bool = False

    def load_module(self) -> FormatModule:
        """Import the module of the format."""
        return cast("FormatModule", importlib.import_module(self.module))


FORMATS: Mapping[str, ExportFormat] = {
    row.name: row
    for row in (
        ExportFormat(
            "timm",
            "folder that finetune and timm load",
            "timm",
            "finetune.exporters.timm_writer",
        ),
        ExportFormat(
            "onnx",
            "one file for ONNX Runtime and other runtimes of ONNX",
            "ONNX Runtime",
            "finetune.exporters.onnx.onnx_writer",
            extra="onnx",
            packages=("onnx", "onnxscript", "onnxruntime"),
            can_include_preprocessing=True,
            has_opset=True,
        ),
        ExportFormat(
            "torch",
            "one program of torch.export, which runs without the code of the model",
            "torch.export",
            "finetune.exporters.torch_program",
            can_include_preprocessing=True,
        ),
        ExportFormat(
            "huggingface",
            "folder for the image-classification pipeline of transformers",
            "transformers",
            "finetune.exporters.huggingface.transformers_folder",
            extra="huggingface",
            packages=("transformers",),
        ),
        ExportFormat(
            "openvino",
            "model file of OpenVINO for processors of Intel and others",
            "OpenVINO",
            "finetune.exporters.openvino.openvino_writer",
            extra="openvino",
            packages=("openvino",),
            can_include_preprocessing=True,
        ),
    )
}
"""Formats by the value of ``--format``."""

DEFAULT_FORMAT = "timm"


def get_format(name: str) -> ExportFormat:
    """Return the format of a name.

    Raises:
        ConfigError: It is unknown.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"--format {name}: unknown.{suggest_name(name, FORMATS)} Choose one of "
            f"{', '.join(FORMATS)}."
        )
    return FORMATS[name]


def check_options(export_format: ExportFormat, options: ExportOptions) -> None:
    """Check that options apply to a format, and that its packages are installed.

    Raises:
        ConfigError: One does not, or a package is missing; the message names the remedy.
    """
    name = export_format.name
    if options.includes_preprocessing and not export_format.can_include_preprocessing:
        able = [row.name for row in FORMATS.values() if row.can_include_preprocessing]
        raise ConfigError(
            f"--include-preprocessing cannot apply to --format {name}, which holds a network and "
            f"describes its preprocessing. {_list_alternatives(able)}"
        )
    if options.precision not in PRECISIONS:
        raise ConfigError(
            f"--precision {options.precision}: unknown. Choose one of {', '.join(PRECISIONS)}."
        )
    if options.precision not in export_format.precisions:
        able = [row.name for row in FORMATS.values() if options.precision in row.precisions]
        raise ConfigError(
            f"--precision {options.precision} cannot apply to --format {name}, which is written "
            f"in {' or '.join(export_format.precisions)}. {_list_alternatives(able)}"
        )
    if options.opset is not None and not export_format.has_opset:
        raise ConfigError(
            f"--opset {options.opset} cannot apply to --format {name}: it is a version of ONNX. "
            f"Leave it out, or use --format onnx."
        )
    check_packages(export_format)


def check_packages(export_format: ExportFormat) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ConfigError: One is missing; the message has the command that installs it.
    """
    missing = [name for name in export_format.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format {export_format.name} needs {' and '.join(missing)}, not installed here. "
            f"Install what it needs: pip install 'finetune-vision[{export_format.extra}]'"
        )


def _list_alternatives(formats: Sequence[str]) -> str:
    if not formats:
        return "Leave it out."
    return f"Leave it out, or use --format {' or '.join(formats)}."
