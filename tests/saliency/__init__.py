"""Tests of ``finetune.saliency``."""
