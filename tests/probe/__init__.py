"""Tests of finetune/probe."""
