"""Tests of ``finetune.commands.diagnosis``."""
