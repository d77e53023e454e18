"""Thresholds of the probability and of the distance below and above which answers are rejected."""
