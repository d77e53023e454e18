"""Checks of a new run before its images are read."""
