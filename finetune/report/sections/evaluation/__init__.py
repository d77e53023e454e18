"""Sections on how well a model does."""
