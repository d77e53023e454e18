"""Tests of finetune/exporters/huggingface."""
