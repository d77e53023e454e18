"""The torch format: ``model.pt2``, a program of ``torch.export`` that runs without its code."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.bundle.runtimes.model_metadata import parse_card
from finetune.bundle.runtimes.program_network import load_program
from finetune.errors import ModelError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.graphs.graph_program import (
    build_graph,
    compare_outputs,
    explain_graph_refusal,
    export_program,
    ignore_export_warnings,
)
from finetune.exporters.reference_preprocessing import Array, predict_by_description
from finetune.types import Reporter

PROGRAM_FILE = "model.pt2"

_TOLERANCE = 1e-4


def explain_refusal(bundle: ModelBundle, options: ExportOptions) -> str | None:
    """Return why a program cannot hold a model, and the remedy; None where it can."""
    return explain_graph_refusal(bundle, options, "torch")


def write_model(
    bundle: ModelBundle, folder: Path, options: ExportOptions, reporter: Reporter
) -> ModelCard:
    """Write a model as ``model.pt2``, and return the card of what it computes.

    Raises:
        ModelError: The network cannot be exported.
    """
    graph = build_graph(bundle, options)
    reporter.start("writing torch program", 1)
    program = export_program(graph, source=bundle.source)
    file = folder / PROGRAM_FILE
    program.example_inputs = None  # they would be stored as a pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    with ignore_export_warnings():
        torch.export.save(program, file, extra_files=dict(graph.metadata))
    network, _ = load_program(file)
    for example in graph.examples:
        with torch.inference_mode():
            difference = compare_outputs(graph, network(example), example)
        if difference > _TOLERANCE:
            raise ModelError(
                f"The program that torch {torch.__version__} writes for {bundle.source} differs "
                f"from its network by {difference:.2g} in a probability. Use another --format."
            )
    reporter.finish()
    return graph.card


def predict_files(folder: Path, images: Sequence[Path]) -> Tensor:
    """Return the probabilities of a program, run by torch without its code, shape (N, K).

    The images are prepared by Pillow and NumPy as its metadata say.
    """
    file = folder / PROGRAM_FILE
    network, metadata = load_program(file)

    def run(batch: Array) -> Tensor:
        with torch.inference_mode():
            output: Tensor = network(torch.from_numpy(batch))
        return output

    options = parse_card(metadata, name=str(file)).read_options
    return predict_by_description(run, images, metadata, options)
