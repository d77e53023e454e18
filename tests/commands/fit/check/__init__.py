"""Tests of ``finetune.commands.fit.check``."""
