"""Tests of ``finetune.audit``."""
