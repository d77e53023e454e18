"""Tests of pretrained weights."""
