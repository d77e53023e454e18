"""Tests of ``finetune.exporters.graphs``."""
