"""Tests of the configuration of Triton, parsed by the rules of its schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from finetune.bundle.model_card import ModelCard
from finetune.exporters.triton import write_triton_files
from finetune.types import PreprocessSpec

Field = descriptor_pb2.FieldDescriptorProto

SCHEMA: dict[str, list[tuple[str, str, bool]]] = {
    "ModelInput": [
        ("name", "string", False),
        ("data_type", "DataType", False),
        ("dims", "int64", True),
    ],
    "ModelOutput": [
        ("name", "string", False),
        ("data_type", "DataType", False),
        ("dims", "int64", True),
        ("label_filename", "string", False),
    ],
    "ModelDynamicBatching": [("max_queue_delay_microseconds", "uint64", False)],
    "ModelConfig": [
        ("name", "string", False),
        ("platform", "string", False),
        ("max_batch_size", "int32", False),
        ("input", "ModelInput", True),
        ("output", "ModelOutput", True),
        ("dynamic_batching", "ModelDynamicBatching", False),
    ],
}
"""Messages of Triton's model_config.proto with the fields that the files use: type, repeated."""


def parse_config(text: str) -> object:
    """Return a configuration as a message of Triton's schema.

    Raises:
        text_format.ParseError: It does not follow the schema.
    """
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, name in ((0, "TYPE_INVALID"), (2, "TYPE_UINT8"), (11, "TYPE_FP32")):
        types.value.add(name=name, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind, is_repeated) in enumerate(fields, start=1):
            field = message.field.add(name=field_name, number=number)
            field.label = Field.LABEL_REPEATED if is_repeated else Field.LABEL_OPTIONAL
            if kind in SCHEMA or kind == "DataType":
                field.type = Field.TYPE_ENUM if kind == "DataType" else Field.TYPE_MESSAGE
                field.type_name = f".{kind}"
            else:
                field.type = getattr(Field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))
    return text_format.Parse(text, message_class())


@pytest.mark.parametrize("takes_photos", [False, True])
def test_write_triton_files_follow_schema(tmp_path: Path, takes_photos: bool) -> None:
    spec = PreprocessSpec((3, 48, 64), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    card = ModelCard("timm/own net.v1", {}, ("bée", 'a "b"', "two\nlines"), spec)
    write_triton_files(
        tmp_path, card, input_name="images", output_name="logits", takes_photos=takes_photos
    )
    config = parse_config((tmp_path / "config.pbtxt").read_text(encoding="utf-8"))
    assert config.name == "timm_own_net.v1"  # type: ignore[attr-defined]
    assert config.platform == "onnxruntime_onnx"  # type: ignore[attr-defined]
    (given,), (returned,) = config.input, config.output  # type: ignore[attr-defined]
    assert list(given.dims) == ([-1, -1, 3] if takes_photos else [3, 48, 64])
    assert given.data_type == (2 if takes_photos else 11)
    assert (returned.name, list(returned.dims)) == ("logits", [3])
    labels = (tmp_path / returned.label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == ["bée", 'a "b"', "two lines"]
