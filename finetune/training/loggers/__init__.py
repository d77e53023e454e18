"""Metrics CSV and Weights & Biases."""
