"""Model files of OpenVINO: ``model.xml`` and ``model.bin``.

OpenVINO converts the program of ``torch.export`` itself: this is the same graph as of the other
formats, without another exporter (that of ONNX) between it and the network.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.bundle.runtimes.model_metadata import parse_card
from finetune.bundle.runtimes.openvino_network import (
    OpenVinoNetwork,
    import_openvino,
    read_openvino_metadata,
)
from finetune.errors import ModelError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.graphs.graph_program import (
    INPUT_NAME,
    ModelGraph,
    build_graph,
    compare_outputs,
    explain_graph_refusal,
    export_program,
    ignore_export_warnings,
)
from finetune.exporters.openvino.model_info import write_model_info
from finetune.exporters.reference_preprocessing import Array, predict_by_description
from finetune.types import Reporter

MODEL_FILE = "model.xml"
"""File with the graph; the weights are ``model.bin`` beside it."""

_TOLERANCE = 1e-4
"""Largest difference of a probability on the examples, which OpenVINO computes in another order."""

_PHOTO_TOLERANCE = 0.01
"""The same with the preprocessing inside: a sum in another order may round a resized pixel to the
next of 256 levels. That of real photos is checked afterwards."""


def explain_refusal(bundle: ModelBundle, options: ExportOptions) -> str | None:
    """Return why a file cannot hold a model, and the remedy; None where it can."""
    return explain_graph_refusal(bundle, options, "openvino")


def write_model(
    bundle: ModelBundle, folder: Path, options: ExportOptions, reporter: Reporter
) -> ModelCard:
    """Write a model as ``model.xml`` and ``model.bin``, and return the card of what it computes.

    Raises:
        ModelError: The network cannot be exported, or OpenVINO computes something else.
    """
    graph = build_graph(bundle, options)
    reporter.start("writing OpenVINO model", 1)
    program = export_program(graph, source=bundle.source)
    model = convert_program(graph, program, source=bundle.source)
    file = folder / MODEL_FILE
    import_openvino().save_model(model, str(file), compress_to_fp16=False)
    network = OpenVinoNetwork(file)
    tolerance = _PHOTO_TOLERANCE if options.includes_preprocessing else _TOLERANCE
    for example in graph.examples:
        difference = compare_outputs(graph, network(example), example)
        if difference > tolerance:
            raise ModelError(
                f"What OpenVINO computes for {bundle.source} differs from its network by "
                f"{difference:.2g} in a probability. Use --format onnx."
            )
    reporter.finish()
    return graph.card


def convert_program(graph: ModelGraph, program: ExportedProgram, *, source: Path) -> Any:
    """Return the model of OpenVINO for a graph, with names, sizes and metadata.

    Args:
        graph: Graph of a model.
        program: Its program.
        source: Path of the model for messages.

    Raises:
        ModelError: OpenVINO is not installed, or does not know an operator of the program.
    """
    openvino = import_openvino()
    try:
        with ignore_export_warnings():
            model = openvino.convert_model(program)
    except Exception as error:  # its frontends have errors of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise ModelError(
            f"{source} cannot be converted by OpenVINO {openvino.__version__}: {reason}. Use "
            f"--format onnx, which OpenVINO reads, too."
        ) from error
    (port,), (result,) = model.inputs, model.outputs
    example = graph.examples[0]
    sizes = [-1 if axis in graph.dynamic_axes else size for axis, size in enumerate(example.shape)]
    model.reshape({port: openvino.PartialShape(sizes)})
    port.get_tensor().set_names({INPUT_NAME})
    takes_photos = graph.metadata["output"] != "logits"
    port.get_node().set_layout(openvino.Layout("NHWC" if takes_photos else "NCHW"))
    result.get_tensor().set_names({graph.output})
    write_model_info(model, graph.card, graph.metadata)
    return model


def predict_files(folder: Path, images: Sequence[Path]) -> Tensor:
    """Return the probabilities of a file, run by OpenVINO in float32, shape (N, K).

    The images are prepared by Pillow and NumPy as its metadata say.
    """
    file = folder / MODEL_FILE
    metadata = read_openvino_metadata(file)
    network = OpenVinoNetwork(file)

    def run(batch: Array) -> Tensor:
        with torch.inference_mode():
            output: Tensor = network(torch.from_numpy(batch))
        return output

    options = parse_card(metadata, name=str(file)).read_options
    return predict_by_description(run, images, metadata, options)
