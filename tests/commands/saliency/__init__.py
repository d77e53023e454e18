"""Tests of ``finetune.commands.saliency``."""
