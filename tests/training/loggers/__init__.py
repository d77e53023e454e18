"""Tests of ``finetune.training.loggers``."""
