"""Tests of ``finetune.commands.early_checks``."""
