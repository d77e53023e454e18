"""Tests of ``finetune.data.transforms``."""
