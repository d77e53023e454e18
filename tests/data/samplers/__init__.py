"""Tests of ``finetune.data.samplers``."""
