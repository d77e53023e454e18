"""Tests of ``finetune.training.callbacks``."""
