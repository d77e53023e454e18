"""Experiment tracking of a run: which trackers it has, and what they receive."""
