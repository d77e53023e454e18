"""Tests of finetune/inference."""
