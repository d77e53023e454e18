"""Metrics in ``metrics.csv`` and in Weights & Biases."""
