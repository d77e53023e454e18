"""Tests of ``finetune.data.images.codecs``."""
