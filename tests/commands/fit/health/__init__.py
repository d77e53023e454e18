"""Tests of ``finetune.commands.fit.health``."""
