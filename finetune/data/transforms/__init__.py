"""Transforms for training and evaluation."""
