"""Tests of ``finetune.training.callbacks.freeze_layers``."""
