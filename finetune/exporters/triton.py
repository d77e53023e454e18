"""Configuration of NVIDIA's Triton Inference Server for an exported ONNX file.

Triton reads a repository of models: ``NAME/config.pbtxt``, ``NAME/labels.txt`` and
``NAME/1/model.onnx``, where 1 is the version of the model.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from finetune.bundle.model_card import ModelCard

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"

MAX_BATCH_SIZE = 32
"""Images that Triton runs at once at most."""

_QUEUE_MICROSECONDS = 1000
"""Longest time that an image waits for others."""

_TEMPLATE = """\
# Model configuration of Triton Inference Server. A model repository has these files:
#   {name}/config.pbtxt   {name}/labels.txt   {name}/1/model.onnx
# Rename the folder and the name below together.
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
input [
  {{
    name: "{input_name}"
    data_type: {input_type}
    dims: [ {input_dims} ]
  }}
]
output [
  {{
    name: "{output_name}"
    data_type: TYPE_FP32
    dims: [ {num_classes} ]
    label_filename: "{labels_file}"
  }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {queue}
}}
"""


def write_triton_files(
    folder: Path, card: ModelCard, *, input_name: str, output_name: str, takes_photos: bool
) -> None:
    """Write the configuration and the labels beside an ONNX file.

    Args:
        folder: Folder of ``model.onnx``.
        card: Card of what it computes.
        input_name: Name of its input.
        output_name: Name of its output.
        takes_photos: Whether its input is photos, uint8, (B, H, W, C), of one size per request.
    """
    channels, height, width = card.spec.input_size
    dims: Sequence[int] = (-1, -1, channels) if takes_photos else (channels, height, width)
    text = _TEMPLATE.format(
        name=_build_name(card.backbone),
        max_batch_size=MAX_BATCH_SIZE,
        input_name=input_name,
        input_type="TYPE_UINT8" if takes_photos else "TYPE_FP32",
        input_dims=", ".join(map(str, dims)),
        output_name=output_name,
        num_classes=len(card.classes),
        labels_file=LABELS_FILE,
        queue=_QUEUE_MICROSECONDS,
    )
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    # a line for each class, in index order
    lines = (" ".join(name.splitlines()) for name in card.classes)
    (folder / LABELS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _build_name(backbone: str) -> str:
    """Return the name of the model: that of its backbone in letters that folders may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", backbone).strip("._-") or "model"
