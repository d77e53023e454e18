"""Sections that show images."""
