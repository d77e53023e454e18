"""Tests of ``finetune.data.cache.pixel_store``."""
