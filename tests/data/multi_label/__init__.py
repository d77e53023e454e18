"""Tests of ``finetune.data.multi_label``."""
