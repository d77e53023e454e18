"""Tests of finetune/data."""
