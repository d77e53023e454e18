"""Tests of ``finetune.commands.submit.submit``."""
