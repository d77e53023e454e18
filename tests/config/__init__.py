"""Tests of finetune/config."""
