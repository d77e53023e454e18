"""Graphs of models as programs of ``torch.export``, with any number of images in a batch."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.errors import ModelError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.folded_head import describe_folded
from finetune.exporters.graphs.calibrated_network import LogitsGraph, PhotoGraph
from finetune.exporters.graphs.photo_preprocessing import INTERPOLATIONS
from finetune.exporters.metadata import Output, build_metadata
from finetune.types import PreprocessSpec

INPUT_NAME = "images"

_PHOTO_SIZES = ((71, 96), (90, 64), (128, 128))
"""Heights and widths of the photos that a graph is tried on; the first is the example's."""

_TRIED_BATCHES = (2, 1, 3)
_SEED = 0


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """Module of a model that is written as one file, with examples of its input.

    Attributes:
        module: Module in eval mode on the CPU.
        examples: Inputs of different batch sizes, and photos of different sizes. The first has two
            images: a batch of one would be taken for a fixed size.
        dynamic_axes: Names of the axes of the input whose size may change, by index.
        output: What the module returns, and the name of the output.
        card: Card of what the module computes.
        metadata: Metadata of the file.
    """

    module: nn.Module
    examples: tuple[Tensor, ...]
    dynamic_axes: dict[int, str]
    output: Output
    card: ModelCard
    metadata: dict[str, str]


def explain_graph_refusal(
    bundle: ModelBundle, options: ExportOptions, format_name: str
) -> str | None:
    """Return why a model cannot be one graph, and the remedy; None where it can."""
    members = bundle.members or (bundle,)
    if options.includes_preprocessing:
        return _explain_photo_refusal(bundle)
    specs = {replace(m.card.spec, mean=(), std=()) for m in members}
    if len(specs) > 1 or len({member.card.read_options for member in members}) > 1:
        sizes = ", ".join(dict.fromkeys(_describe_spec(m.card.spec) for m in members))
        return (
            f"--format {format_name} cannot hold these models in one file of normalised pixels: "
            f"they prepare images in different ways ({sizes}). Add --include-preprocessing, with "
            f"which the file takes photos, or export each model by itself."
        )
    return None


def _explain_photo_refusal(bundle: ModelBundle) -> str | None:
    members = bundle.members or (bundle,)
    deep = next((m for m in members if m.card.bit_depth != 8), None)
    if deep is not None:
        return (
            f"--include-preprocessing cannot apply to {deep.source}, which reads images of "
            f"{deep.card.bit_depth} bits (data.bit_depth={deep.card.bit_depth}): the file would "
            f"take photos of 8 bits. Leave it out: the file then takes normalised pixels."
        )
    if len({member.card.read_options for member in members}) > 1:
        return (
            "--include-preprocessing cannot apply to these models: they read other channels or "
            "ranges of values of an image. Export each model by itself."
        )
    for member in members:
        if member.card.spec.interpolation not in INTERPOLATIONS:
            return (
                f"--include-preprocessing cannot apply to {member.source}, whose interpolation is "
                f"{member.card.spec.interpolation}; a file can hold {', '.join(INTERPOLATIONS)}. "
                f"Leave it out: the file then takes normalised pixels."
            )
    return None


def build_graph(bundle: ModelBundle, options: ExportOptions) -> ModelGraph:
    """Return the module of a model that is written as one file."""
    card = describe_folded(bundle.card)
    generator = torch.Generator().manual_seed(_SEED)
    channels, height, width = card.spec.input_size
    if options.includes_preprocessing:
        output: Output = "probabilities"
        module: nn.Module = PhotoGraph(bundle)
        examples = tuple(
            torch.randint(0, 256, (b, *size, channels), dtype=torch.uint8, generator=generator)
            for b, size in zip(_TRIED_BATCHES, _PHOTO_SIZES, strict=True)
        )
        axes = {0: "batch", 1: "height", 2: "width"}
    else:
        output, module = "logits", LogitsGraph(bundle)
        examples = tuple(
            torch.randn(b, channels, height, width, generator=generator) for b in _TRIED_BATCHES
        )
        axes = {0: "batch"}
    metadata = build_metadata(bundle, card, output=output)
    return ModelGraph(module.eval(), examples, axes, output, card, metadata)


def export_program(graph: ModelGraph, *, source: Path) -> ExportedProgram:
    """Return the program of a graph.

    Args:
        graph: Graph of a model.
        source: Path of the model for messages.

    Raises:
        ModelError: ``torch.export`` cannot follow the network.
    """
    shapes = ({axis: Dim(name) for axis, name in graph.dynamic_axes.items()},)
    error: Exception | None = None
    for is_strict in (False, True):  # the strict one analyses the code instead of running it
        try:
            with torch.no_grad(), ignore_export_warnings():
                return torch.export.export(
                    graph.module, (graph.examples[0],), dynamic_shapes=shapes, strict=is_strict
                )
        except Exception as caught:  # networks of one's own may fail in any way
            error = error or caught
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise ModelError(
        f"{source} cannot be exported as a graph: torch.export does not follow its network "
        f"({reason}). A network of one's own must neither depend on values of the pixels nor on a "
        f"fixed number of images. The bundle itself needs no export, as finetune predict reads it."
    ) from error


def compare_outputs(graph: ModelGraph, actual: Tensor, example: Tensor) -> float:
    """Return the largest difference of a probability of written and original outputs, (B, K)."""
    with torch.inference_mode():
        expected: Tensor = graph.module(example)
    if actual.shape != expected.shape:
        return float("inf")
    if graph.output == "logits":
        activate = torch.sigmoid if graph.card.is_multi_label else _softmax
        actual, expected = activate(actual), activate(expected)
    difference = float((actual - expected).abs().max())
    return difference if difference == difference else float("inf")  # NaN


@contextmanager
def ignore_export_warnings() -> Iterator[None]:
    """Ignore what torch warns of its own exporters within the block."""
    with warnings.catch_warnings():
        # torch's own modules: of types that it registers, and of what it replaces
        for module in (r"torch\.", r"onnxscript", r"copyreg", r"contextlib"):
            warnings.filterwarnings("ignore", module=module)
        # of the older exporter, attributed to its caller
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript")
        yield


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def _describe_spec(spec: PreprocessSpec) -> str:
    height, width = spec.input_size[1:]
    return f"{width} x {height} px {spec.interpolation}, crop {spec.crop_pct:g} {spec.crop_mode}"
