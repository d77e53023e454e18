"""Tests of ``finetune.bundle.model_page``."""
