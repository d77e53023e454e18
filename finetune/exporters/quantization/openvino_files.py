"""Smaller versions of OpenVINO's ``model.xml``: int8 by NNCF, and weights in fp16."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from finetune.bundle.runtimes.openvino_network import (
    OpenVinoNetwork,
    get_core,
    import_openvino,
    read_openvino_metadata,
)
from finetune.exporters.openvino.model_info import METADATA_SECTION, MODEL_INFO_SECTION
from finetune.exporters.openvino.openvino_writer import MODEL_FILE
from finetune.exporters.quantization.graph_inputs import GraphInputs
from finetune.exporters.quantization.quantization_plan import QuantizationRecord
from finetune.types import Reporter

_WEIGHTED_OPERATORS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")

_HALF = QuantizationRecord("fp16", "weights in fp16; the processor computes in float32")
_INT8 = "all layers in int8 where NNCF finds kernels"


def read_metadata(folder: Path) -> dict[str, str]:
    """Return the metadata of the file in a folder."""
    return read_openvino_metadata(folder / MODEL_FILE)


def write_metadata(folder: Path, metadata: Mapping[str, str]) -> None:
    """Replace the metadata of the file in a folder."""
    openvino = import_openvino()
    with TemporaryDirectory(prefix=".metadata-", dir=folder) as name:
        # the model reads the weights of the old files while the new ones are written
        model = get_core().read_model(str(folder / MODEL_FILE))
        for key, text in metadata.items():
            model.set_rt_info(text, [METADATA_SECTION, key])
        openvino.save_model(model, str(Path(name) / MODEL_FILE), compress_to_fp16=False)
        for file in Path(name).iterdir():
            file.replace(folder / file.name)


def open_network(folder: Path) -> torch.nn.Module:
    """Return the file in a folder as a network of its own inputs; see ``OpenVinoNetwork``."""
    return OpenVinoNetwork(folder / MODEL_FILE)


def write_smaller(
    source: Path, target: Path, precision: str, inputs: GraphInputs, reporter: Reporter
) -> QuantizationRecord:
    """Write the smaller version of the file in a folder, with its metadata, to another folder.

    Args:
        source: Folder with the float32 file.
        target: Existing folder to write to.
        precision: "int8" or "fp16".
        inputs: Training images as inputs of the file, for int8.
        reporter: Receiver of notes.
    """
    del reporter
    openvino = import_openvino()
    model = get_core().read_model(str(source / MODEL_FILE))
    if precision == "int8":
        quantized = _quantize(model, inputs)
        _copy_metadata(model, quantized)
        openvino.save_model(quantized, str(target / MODEL_FILE), compress_to_fp16=False)
        return QuantizationRecord("nncf", _INT8, num_measured_images=len(inputs))
    openvino.save_model(model, str(target / MODEL_FILE), compress_to_fp16=True)
    return _HALF


def _quantize(model: Any, inputs: GraphInputs) -> Any:
    """Return the int8 version of a model by NNCF's post-training quantisation."""
    with _quiet_nncf():
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)  # its import has set another level
        outer = _find_outer_nodes(model)
        return nncf.quantize(
            model,
            nncf.Dataset(list(inputs) if not inputs.takes_photos else inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=outer, validate=False),
        )


def _find_outer_nodes(model: Any) -> list[str]:
    """Return the names of the nodes that no layer with weights is before: the preprocessing."""
    reached: set[str] = set()
    outer = []
    for node in model.get_ordered_ops():
        sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
        is_weighted = node.get_type_name() in _WEIGHTED_OPERATORS and any(
            _is_constant(source) for source in sources[1:]
        )
        if is_weighted or any(source.get_friendly_name() in reached for source in sources):
            reached.add(node.get_friendly_name())
        elif node.get_type_name() not in ("Constant", "Parameter", "Result"):
            outer.append(node.get_friendly_name())
    return outer


def _is_constant(node: Any) -> bool:
    """Return whether a node is a stored tensor, or follows from stored tensors alone."""
    if node.get_type_name() == "Constant":
        return True
    sizes = node.get_input_size()
    return bool(sizes) and all(_is_constant(node.input_value(i).get_node()) for i in range(sizes))


def _copy_metadata(source: Any, target: Any) -> None:
    """Copy the ``rt_info`` that an export has written."""
    for section in (METADATA_SECTION, MODEL_INFO_SECTION):
        if source.has_rt_info([section]):
            for key, value in source.get_rt_info([section]).value.items():
                target.set_rt_info(str(value), [section, key])


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[None]:
    """Keep NNCF, and what it imports of torch, from logging, warnings and progress bars."""
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # of NNCF's own imports and of torch modules that it registers
        warnings.filterwarnings("ignore", module=r"nncf|torch|onnx|openvino")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
