"""Tests of ``finetune.data.streams``."""
