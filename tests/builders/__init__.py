"""Tests of ``finetune.builders``."""
