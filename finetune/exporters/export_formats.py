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
    from torch import Tensor, nn

    from finetune.bundle.bundle import ModelBundle
    from finetune.bundle.model_card import ModelCard
    from finetune.exporters.quantization.graph_inputs import GraphInputs
    from finetune.exporters.quantization.quantization_plan import QuantizationRecord

PRECISIONS = ("fp32", "fp16", "int8")
"""Values of ``--precision``."""

DEFAULT_MAX_DROP = 1.0
"""Points of accuracy that a file with fewer bits may lose."""


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


class SmallerModule(Protocol):
    """Module that makes the files of a format smaller: in int8 or fp16."""

    def read_metadata(self, folder: Path) -> dict[str, str]:
        """Return the metadata of the file in a folder."""

    def write_metadata(self, folder: Path, metadata: Mapping[str, str]) -> None:
        """Replace the metadata of the file in a folder."""

    def open_network(self, folder: Path) -> "nn.Module":
        """Return the file in a folder as a network of its own inputs."""

    def write_smaller(
        self,
        source: Path,
        target: Path,
        precision: str,
        inputs: "GraphInputs",
        reporter: Reporter,
    ) -> "QuantizationRecord":
        """Write the smaller version of the file in a folder to another folder."""


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
        smaller_module: Python module with the functions of ``SmallerModule``; None where files are
            written in fp32 only.
        int8_packages: Further Python packages of the extra that int8 needs.
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
    smaller_module: str | None = None
    int8_packages: tuple[str, ...] = ()
    can_include_preprocessing: bool = False
    has_opset: bool = False

    def load_module(self) -> FormatModule:
        """Import the module of the format."""
        return cast("FormatModule", importlib.import_module(self.module))

    def load_smaller_module(self) -> SmallerModule:
        """Import the module that writes other precisions than fp32."""
        assert self.smaller_module is not None, "check_options has been called"
        return cast("SmallerModule", importlib.import_module(self.smaller_module))


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
            precisions=PRECISIONS,
            smaller_module="finetune.exporters.quantization.onnx_files",
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
            precisions=PRECISIONS,
            smaller_module="finetune.exporters.quantization.openvino_files",
            int8_packages=("nncf",),
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
        raise ConfigError(f"--format {name}: unknown.{suggest_name(name, FORMATS)}")
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
    check_packages(export_format, options)


def resolve_max_drop(max_drop: float | None, precision: str) -> float:
    """Return the points that a file with fewer bits may lose.

    Args:
        max_drop: Points as given; None for ``DEFAULT_MAX_DROP``.
        precision: Type of the numbers, one of ``PRECISIONS``.

    Raises:
        ConfigError: They are not between 0 and 100, or the file has all bits.
    """
    if max_drop is None:
        return DEFAULT_MAX_DROP
    if precision == "fp32":
        raise ConfigError(
            f"--max-drop {max_drop:g} cannot apply to --precision fp32, which must give the same "
            f"answers as the model. Leave it out, or use --precision int8 or --precision fp16."
        )
    if not 0 <= max_drop <= 100:
        raise ConfigError(
            f"--max-drop {max_drop:g}: give points of accuracy between 0 and 100, such as 1."
        )
    return max_drop


def check_packages(export_format: ExportFormat, options: ExportOptions) -> None:
    """Check that the packages of a format and of its options are installed.

    Raises:
        ConfigError: One is missing; the message has the command that installs it.
    """
    is_int8 = options.precision == "int8"
    packages = (*export_format.packages, *(export_format.int8_packages if is_int8 else ()))
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format {export_format.name} needs {' and '.join(missing)}, not installed here. "
            f"Install what it needs: pip install 'finetune-vision[{export_format.extra}]'"
        )


def _list_alternatives(formats: Sequence[str]) -> str:
    if not formats:
        return "Leave it out."
    return f"Leave it out, or use --format {' or '.join(formats)}."
