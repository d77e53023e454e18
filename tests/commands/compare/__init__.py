"""Tests of ``finetune.commands.compare``."""
