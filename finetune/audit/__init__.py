"""Audit of a dataset: duplicates, leakage, suspicious images and label errors."""
