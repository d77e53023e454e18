"""Malformed inputs for the commands that read images."""
