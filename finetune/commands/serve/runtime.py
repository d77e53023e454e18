"""Library that computes the network of a server."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from torch import nn

from finetune.bundle.bundle import ModelBundle, combine_models, load_model
from finetune.bundle.runtimes.onnx_network import OnnxNetwork
from finetune.bundle.runtimes.openvino_network import OpenVinoNetwork
from finetune.bundle.runtimes.photo_network import PhotoNetwork
from finetune.bundle.runtimes.runtime_models import is_exported_network
from finetune.errors import ConfigError
from finetune.exporters.export_formats import ExportOptions, check_options, get_format
from finetune.types import Reporter

Runtime = Literal["auto", "onnx", "torch"]


@contextmanager
def choose_runtime(
    bundle: ModelBundle, runtime: Runtime, *, reporter: Reporter
) -> Iterator[tuple[ModelBundle, str]]:
    """Yield the model that computes, and the name of its library.

    Args:
        bundle: Model as it was loaded, or an ensemble.
        runtime: "onnx" exports a network of torch to a temporary file; "torch" and "auto" compute
            each model as it is.
        reporter: Receiver of progress.

    Raises:
        ConfigError: The model is a file of another library, or ONNX cannot hold it.
        ModelError: The network cannot be exported.
    """
    members = bundle.members or (bundle,)
    names = {_name_runtime(member.network) for member in members}
    name = " and ".join(sorted(names))
    if runtime == "auto" or names == {runtime}:
        yield bundle, name
        return
    foreign = next((m for m in members if is_exported_network(m.network)), None)
    if foreign is not None:
        raise ConfigError(
            f"--runtime {runtime} cannot apply to {foreign.source}, a file that "
            f"{_name_runtime(foreign.network)} runs. Leave out --runtime, or serve the run that "
            f"it was exported from."
        )
    with tempfile.TemporaryDirectory(prefix="finetune-serve-") as folder:
        exported = [
            _export_to_onnx(member, Path(folder) / str(number), reporter)
            for number, member in enumerate(members)
        ]
        weights = bundle.weights or None
        yield (
            exported[0] if len(exported) == 1 else combine_models(exported, weights=weights),
            "onnx",
        )


def _export_to_onnx(bundle: ModelBundle, folder: Path, reporter: Reporter) -> ModelBundle:
    export_format, options = get_format("onnx"), ExportOptions()
    check_options(export_format, options)
    module = export_format.load_module()
    refusal = module.explain_refusal(bundle, options)
    if refusal is not None:
        raise ConfigError(f"--runtime onnx cannot apply to {bundle.source}: {refusal}")
    folder.mkdir()
    module.write_model(bundle, folder, options, reporter)
    return load_model(folder)


def _name_runtime(network: nn.Module) -> str:
    """Return the name of the library that runs a network."""
    inner = network.network if isinstance(network, PhotoNetwork) else network
    if isinstance(inner, OnnxNetwork):
        return "onnx"
    return "openvino" if isinstance(inner, OpenVinoNetwork) else "torch"
