"""Checks of a stored model before it is used: its files, their digests, and its weights."""
