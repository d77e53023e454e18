"""Tests of ``finetune.training``."""
