"""Tests of ``finetune.commands.fit.fit``."""
