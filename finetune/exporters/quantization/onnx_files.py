"""Smaller versions of ``model.onnx``: int8, and fp16."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnxruntime.transformers import float16

from finetune.bundle.runtimes.onnx_network import (
    OnnxNetwork,
    open_onnx_session,
    read_onnx_metadata,
)
from finetune.errors import ModelError
from finetune.exporters.onnx.onnx_writer import ONNX_FILE
from finetune.exporters.quantization.graph_inputs import GraphInputs
from finetune.exporters.quantization.network_nodes import find_network_nodes, name_nodes
from finetune.exporters.quantization.onnx_int8 import quantize_onnx
from finetune.exporters.quantization.quantization_plan import QuantizationRecord
from finetune.types import Reporter

_HALF = QuantizationRecord("fp16", "weights and activations of the network in fp16")


def read_metadata(folder: Path) -> dict[str, str]:
    """Return the metadata of the file in a folder."""
    return read_onnx_metadata(open_onnx_session(folder / ONNX_FILE))


def write_metadata(folder: Path, metadata: Mapping[str, str]) -> None:
    """Replace the metadata of the file in a folder."""
    model = onnx.load(folder / ONNX_FILE)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, folder / ONNX_FILE)


def open_network(folder: Path) -> torch.nn.Module:
    """Return the file in a folder as a network of its own inputs; see ``OnnxNetwork``."""
    return OnnxNetwork(open_onnx_session(folder / ONNX_FILE))


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

    Raises:
        ModelError: The model has weights in a file of their own, which the quantiser cannot read.
    """
    del reporter
    others = [file for file in source.iterdir() if file.name != ONNX_FILE]
    if any(file.suffix == ".data" for file in others):
        raise ModelError(
            f"--precision {precision} cannot apply to a model of more than 2 GB, whose weights lie "
            f"beside the ONNX file. Use --format openvino, or leave it out."
        )
    for file in others:
        shutil.copyfile(file, target / file.name)
    if precision == "int8":
        return quantize_onnx(source / ONNX_FILE, target / ONNX_FILE, inputs)
    model = onnx.load(source / ONNX_FILE)
    name_nodes(model.graph.node)
    outer = list(find_network_nodes(model.graph).outer)
    converted = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=outer)
    onnx.save(converted, target / ONNX_FILE)
    return _HALF
