"""Findings of an audit: duplicates with their labels and splits, images of little use."""
