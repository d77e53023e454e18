"""Tests of ``finetune.commands.tune.trials``."""
