"""Tests of ``finetune.commands.export``."""
