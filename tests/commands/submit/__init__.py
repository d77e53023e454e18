"""Tests of ``finetune.commands.submit``."""
