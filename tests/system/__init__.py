"""Tests of ``finetune.system``."""
