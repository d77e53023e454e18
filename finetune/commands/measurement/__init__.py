"""Measurements of a run: how to augment, how fast to train, and which weights to keep."""
