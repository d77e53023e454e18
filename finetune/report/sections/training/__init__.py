"""Sections on how a network was trained."""
