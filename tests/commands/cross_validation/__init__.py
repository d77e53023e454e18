"""Tests of ``finetune.commands.cross_validation``."""
