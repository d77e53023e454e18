"""Tests of ``finetune.evaluation``."""
