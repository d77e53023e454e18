"""Static int8 quantisation of ONNX files: weights per channel, activations by measured ranges.

Operators stay between QuantizeLinear and DequantizeLinear (QDQ), which runtimes fuse into integer
kernels. Activations are uint8 and weights int8, the pair that x86 multiplies fastest.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from finetune.bundle.runtimes.onnx_network import open_onnx_session
from finetune.exporters.quantization.graph_inputs import GraphInputs
from finetune.exporters.quantization.network_nodes import (
    WEIGHTED_OPERATORS,
    find_network_nodes,
    name_nodes,
)
from finetune.exporters.quantization.quantization_plan import (
    PLANS,
    QuantizationPlan,
    QuantizationRecord,
)
from finetune.exporters.reference_preprocessing import (
    Array,
    FileDescription,
    parse_description,
    to_probabilities,
)

_OPERATORS = (
    *WEIGHTED_OPERATORS,
    *("Add", "Relu", "Clip", "Concat", "Split", "Slice", "Pad"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
)
"""Operators with integer kernels. Softmax, norms and smooth activations stay in float32."""

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

_PERCENTILE = 99.99

_STRIDE = 1
"""Images whose activations are kept in memory at the same time."""


def quantize_onnx(
    source: Path,
    target: Path,
    inputs: GraphInputs,
    *,
    plans: Sequence[QuantizationPlan] = PLANS,
    on_plan: Callable[[QuantizationPlan], None] = lambda plan: None,
) -> QuantizationRecord:
    """Write the int8 version of a float32 file by the plan that changes its output least.

    Two thirds of the images measure the ranges of activations. On the others, the probabilities of
    each plan are compared with those of the float32 file.

    Args:
        source: ONNX file in float32.
        target: File to write.
        inputs: Training images as inputs of the graph.
        plans: Plans to try.
        on_plan: Receives each plan before it is tried.

    Returns:
        The chosen plan with what chose it.
    """
    measured, judged = inputs.split()
    divergences: dict[str, float] = {}
    with TemporaryDirectory(prefix="finetune-int8-") as name, _quiet_quantizer():
        graph = _PreparedGraph(source, Path(name), measured)
        expected = _compute_probabilities(source, judged)
        for plan in plans:
            on_plan(plan)
            actual = _compute_probabilities(graph.quantize(plan), judged)
            divergences[plan.name] = _compute_divergence(actual, expected)
        best = min(plans, key=lambda plan: divergences[plan.name])
        _copy_with_metadata(graph.get_file(best), target, source)
    return QuantizationRecord(best.name, best.description, divergences, len(measured), len(judged))


class _PreparedGraph:
    """Graph that is ready for quantisation; ranges are measured once for each method.

    Args:
        source: ONNX file in float32.
        folder: Folder for temporary files.
        inputs: Inputs from which ranges are measured.
    """

    def __init__(self, source: Path, folder: Path, inputs: GraphInputs) -> None:
        self._folder, self._inputs = folder, inputs
        self._file = folder / "prepared.onnx"
        quant_pre_process(source, self._file, skip_symbolic_shape=True)
        model = onnx.load(self._file)
        name_nodes(model.graph.node)
        onnx.save(model, self._file)
        self._input_name = model.graph.input[0].name
        self._nodes = find_network_nodes(model.graph)

    def get_file(self, plan: QuantizationPlan) -> Path:
        """Return the file of a plan."""
        return self._folder / f"plan-{plan.name}.onnx"

    def quantize(self, plan: QuantizationPlan) -> Path:
        """Write and return the file of a plan."""
        target = self.get_file(plan)
        quantize_static(
            self._file,
            target,
            _InputReader(self._inputs, self._input_name),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*self._nodes.outer, *(self._nodes.ends if plan.keeps_ends else ())],
            calibrate_method=_METHODS[plan.method],
            calibration_cache_path=self._folder / f"ranges-{plan.method}.json",
            extra_options={
                "CalibStridedMinMax": _STRIDE,
                "CalibPercentile": _PERCENTILE,
                "MatMulConstBOnly": True,
            },
        )
        return target


class _InputReader(CalibrationDataReader):  # type: ignore[misc] # has no types
    """Inputs of a graph, one image after the other.

    Args:
        inputs: Inputs of the graph.
        name: Name of the input.
    """

    def __init__(self, inputs: GraphInputs, name: str) -> None:
        self._inputs, self._name = inputs, name
        self._left = iter(inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Choose the images that follow."""
        self._left = iter(self._inputs.take(self._inputs.files[start_index:end_index]))

    def get_next(self) -> dict[str, Array] | None:
        """Return the next input by name; None after the last."""
        pixels = next(self._left, None)
        return None if pixels is None else {self._name: pixels}


def _compute_probabilities(file: Path, inputs: GraphInputs) -> Array:
    """Return the class probabilities of a file, shape (N, K)."""
    session = open_onnx_session(file)
    name = session.get_inputs()[0].name
    outputs = np.concatenate([session.run(None, {name: pixels})[0] for pixels in inputs])
    description: FileDescription = parse_description(inputs.metadata)
    return outputs if description.takes_photos else to_probabilities(outputs, description)


def _compute_divergence(actual: Array, expected: Array) -> float:
    """Return the mean Kullback-Leibler divergence of probabilities, shape (N, K), in nats.

    That of multi-label images is the sum over the labels, each with its complement.
    """
    pairs = [(actual, expected)]
    if not np.allclose(expected.sum(axis=1), 1, atol=1e-3):
        pairs.append((1 - actual, 1 - expected))
    total = 0.0
    for own, other in pairs:
        own, other = (np.maximum(table.astype(np.float64), 1e-12) for table in (own, other))
        total += float((other * (np.log(other) - np.log(own))).sum(axis=1).mean())
    return total if total == total else float("inf")  # NaN


def _copy_with_metadata(file: Path, target: Path, source: Path) -> None:
    """Copy a quantised file with the metadata of the file that it was made from."""
    model = onnx.load(file)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(source, load_external_data=False).metadata_props)
    onnx.save(model, target)


@contextlib.contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Keep the quantiser from printing and from logging what users cannot act on."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
