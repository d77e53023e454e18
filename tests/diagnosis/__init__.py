"""Tests of ``finetune.diagnosis``, and of its reader of run folders."""
