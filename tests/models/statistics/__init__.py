"""Tests of ``finetune.models.statistics``."""
