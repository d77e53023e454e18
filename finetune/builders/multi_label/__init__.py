"""Builders of what differs for multi-label images."""
