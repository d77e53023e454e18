"""The onnx format: ``model.onnx``, one file with its classes, preprocessing and licence inside."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.bundle.runtimes.model_metadata import parse_card
from finetune.bundle.runtimes.onnx_network import open_onnx_session, read_onnx_metadata
from finetune.errors import ConfigError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.graphs.graph_program import (
    INPUT_NAME,
    build_graph,
    explain_graph_refusal,
    export_program,
)
from finetune.exporters.onnx.graph_export import DEFAULT_OPSET, write_onnx
from finetune.exporters.reference_preprocessing import predict_by_description
from finetune.exporters.triton import write_triton_files
from finetune.types import Reporter

ONNX_FILE = "model.onnx"


def explain_refusal(bundle: ModelBundle, options: ExportOptions) -> str | None:
    """Return why an ONNX file cannot hold a model, and the remedy; None where it can.

    Raises:
        ConfigError: The version of the operators is not one of those that can be written.
    """
    newest = onnx.defs.onnx_opset_version()
    if options.opset is not None and not DEFAULT_OPSET <= options.opset <= newest:
        raise ConfigError(
            f"--opset {options.opset}: choose one from {DEFAULT_OPSET} to {newest}, the newest of "
            f"onnx {onnx.__version__}."
        )
    return explain_graph_refusal(bundle, options, "onnx")


def write_model(
    bundle: ModelBundle, folder: Path, options: ExportOptions, reporter: Reporter
) -> ModelCard:
    """Write a model as ``model.onnx``, and return the card of what it computes.

    Raises:
        ModelError: The network cannot be exported.
    """
    graph = build_graph(bundle, options)
    reporter.start("writing ONNX", 1)
    program = export_program(graph, source=bundle.source)
    write_onnx(graph, program, options.opset or DEFAULT_OPSET, folder / ONNX_FILE)
    write_triton_files(
        folder,
        graph.card,
        input_name=INPUT_NAME,
        output_name=graph.output,
        takes_photos=options.includes_preprocessing,
    )
    reporter.finish()
    return graph.card


def predict_files(folder: Path, images: Sequence[Path]) -> Tensor:
    """Return the probabilities of a file, run by ONNX Runtime, shape (N, K).

    The images are prepared by Pillow and NumPy as its metadata say.
    """
    session = open_onnx_session(folder / ONNX_FILE)
    metadata = read_onnx_metadata(session)

    def run(batch: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT_NAME: batch})[0])

    options = parse_card(metadata, name=str(folder / ONNX_FILE)).read_options
    return predict_by_description(run, images, metadata, options)
