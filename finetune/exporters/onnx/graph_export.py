"""Graph of a model as an ONNX file, checked on examples as it is written.

torch's exporter has written graphs with other outputs (https://github.com/pytorch/pytorch/issues/
166797, 168224 and 169178), for example by folding constants wrongly. A file whose outputs differ is
therefore written again without these steps, and then by the older exporter.
"""

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx
import torch
from torch.export import ExportedProgram

from finetune.bundle.runtimes.onnx_network import open_onnx_session
from finetune.errors import ModelError
from finetune.exporters.graphs.graph_program import (
    INPUT_NAME,
    ModelGraph,
    compare_outputs,
    ignore_export_warnings,
)

DEFAULT_OPSET = 18
"""Operators of December 2022, which torch's exporter writes without conversion: all runtimes since
then read them."""

MAX_FILE_BYTES = 2_000_000_000
"""Size from which weights lie in a file of their own: ONNX files have at most 2 GiB."""

_TOLERANCE = 1e-4
"""Largest difference of a probability on the examples, which one runtime after the other computes
in another order."""

_EXPORTER_KEY = "exporter"

Writer = Callable[[ModelGraph, ExportedProgram, int, Path], None]


def write_onnx(graph: ModelGraph, program: ExportedProgram, opset: int, file: Path) -> str:
    """Write a graph as an ONNX file with its metadata, and return the name of the exporter.

    Args:
        graph: Graph of a model.
        program: Its program.
        opset: Version of the operators.
        file: File to write; the weights of models above ``MAX_FILE_BYTES`` lie beside it.

    Raises:
        ModelError: No exporter writes a file with the outputs of the graph.
    """
    reasons = []
    others = set(file.parent.iterdir())
    for name, write in WRITERS.items():
        _remove_files(set(file.parent.iterdir()) - others)  # what the exporter before has left
        try:
            with ignore_export_warnings(), _quiet_exporter():
                write(graph, program, opset, file)
            _complete(file, graph, {**graph.metadata, _EXPORTER_KEY: name})
            difference = _measure_difference(graph, file)
        except Exception as error:  # the exporters raise errors of any type
            reasons.append(f"{name}: {str(error).strip().partition(chr(10))[0]}")
            continue
        if difference <= _TOLERANCE:
            return name
        reasons.append(f"{name}: a probability differs by {difference:.2g}")
    raise ModelError(
        f"No exporter of torch {torch.__version__} writes an ONNX file (opset {opset}) with the "
        f"outputs of the network: {'; '.join(reasons)}. Use another --opset, or another --format."
    )


def _remove_files(files: Iterable[Path]) -> None:
    """Remove files: a graph, and the weights beside it, under names that each exporter chooses."""
    for file in files:
        file.unlink()


def _write_optimised(graph: ModelGraph, program: ExportedProgram, opset: int, file: Path) -> None:
    _write_program(graph, program, opset, file, optimises=True)


def _write_unoptimised(graph: ModelGraph, program: ExportedProgram, opset: int, file: Path) -> None:
    _write_program(graph, program, opset, file, optimises=False)


def _write_program(
    graph: ModelGraph, program: ExportedProgram, opset: int, file: Path, *, optimises: bool
) -> None:
    """Write a file by torch's exporter of programs."""
    written = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=[graph.output],
        opset_version=opset,
        optimize=optimises,
        verbose=False,
    )
    assert written is not None
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    written.save(file, external_data=size > MAX_FILE_BYTES)


def _write_traced(graph: ModelGraph, program: ExportedProgram, opset: int, file: Path) -> None:
    """Write a file by torch's older exporter, which traces the network."""
    del program
    torch.onnx.export(
        graph.module,
        (graph.examples[0],),
        file,
        dynamo=False,
        input_names=[INPUT_NAME],
        output_names=[graph.output],
        dynamic_axes={INPUT_NAME: graph.dynamic_axes, graph.output: {0: "batch"}},
        opset_version=opset,
    )


WRITERS: Mapping[str, Writer] = {
    "torch.onnx of a program": _write_optimised,
    "torch.onnx of a program, not optimised": _write_unoptimised,
    "torch.onnx of a trace": _write_traced,
}
"""Exporters in the order in which they are tried."""


def _complete(file: Path, graph: ModelGraph, metadata: Mapping[str, str]) -> None:
    """Write metadata into a file, and name the axes whose size may change."""
    model = onnx.load(str(file), load_external_data=False)
    onnx.helper.set_model_props(model, dict(metadata))
    for value, axes in (
        (model.graph.input[0], graph.dynamic_axes),
        (model.graph.output[0], {0: graph.dynamic_axes[0]}),
    ):
        for axis, name in axes.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    file.write_bytes(model.SerializeToString())


def _measure_difference(graph: ModelGraph, file: Path) -> float:
    """Return the largest difference of a probability on the examples."""
    session = open_onnx_session(file)
    outputs = (session.run(None, {INPUT_NAME: example.numpy()})[0] for example in graph.examples)
    return max(
        compare_outputs(graph, torch.from_numpy(output), example)
        for output, example in zip(outputs, graph.examples, strict=True)
    )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's exporter from printing and logging within the block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
