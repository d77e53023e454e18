"""Tests of ``finetune.evaluation.multi_label``."""
