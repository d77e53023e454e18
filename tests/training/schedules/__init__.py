"""Tests of ``finetune.training.schedules``."""
