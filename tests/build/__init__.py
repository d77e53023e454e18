"""Tests of finetune.build."""
