"""Sections of the config, by subject."""
