"""Tests of ``finetune.commands.inspect.inspect``."""
