"""Tests of finetune/commands."""
