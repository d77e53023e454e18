"""Findings on a run, on the console."""
