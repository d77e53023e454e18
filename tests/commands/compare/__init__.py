"""Tests of ``finetune.commands.compare.compare``."""
