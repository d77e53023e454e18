"""Tests of ``finetune.exporters.onnx``."""
