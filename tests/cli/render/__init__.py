"""Tests of ``finetune.cli.render``."""
