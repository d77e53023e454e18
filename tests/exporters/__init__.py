"""Tests of finetune/exporters."""
