"""Tests of ``finetune.commands.tune.space``."""
