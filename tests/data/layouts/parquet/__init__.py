"""Tests of ``finetune.data.layouts.parquet``."""
