"""Tests of ``finetune.commands.push``."""
