"""Tests of ``finetune.distributed``."""
