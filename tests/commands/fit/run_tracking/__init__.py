"""Tests of experiment tracking."""
