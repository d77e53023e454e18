"""Tests of ``finetune.exporters.quantization``."""
