"""Tests of ``finetune.training.loggers.experiment``."""
