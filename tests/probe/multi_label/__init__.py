"""Tests of ``finetune.probe.multi_label``."""
