"""Tests of ``finetune.bundle.verification``."""
