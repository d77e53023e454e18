"""Tests of ``finetune.bundle.bundle``."""
