"""Tests of ``finetune.commands.fit``."""
