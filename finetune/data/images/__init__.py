"""Decode images from files."""
