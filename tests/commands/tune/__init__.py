"""Tests of ``finetune.commands.tune``."""
